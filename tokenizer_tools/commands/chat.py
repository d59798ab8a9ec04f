"""`tokenizer-tools chat`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenizer_tools.commands.refusal import FOUND_FAULTS, refusing

if TYPE_CHECKING:
    from tokenizer_tools.chat import ChatReport

_COLOURS = {"ok": "green", "note": "yellow", "fault": "red"}


@refusing
def chat(
    folder: Annotated[Path, typer.Argument(help="Model or tokenizer folder with a chat template")],
    system: Annotated[str, typer.Option(help="Text of the system turn in the preview")] = "You answer in one line.",
    user: Annotated[str, typer.Option(help="Text of the user turn in the preview")] = "What is Faust?",
    thinking_name: Annotated[
        str, typer.Option(help="What the template calls the switch of thinking")
    ] = "enable_thinking",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text")] = False,
) -> None:
    """Preview and check a chat template, with thinking left out, on and off; exit code 1 where it has a fault."""
    from tokenizer_tools.chat import check_chat
    from tokenizer_tools.chat_template import ChatTemplate

    report = check_chat(ChatTemplate(folder, thinking_name), system, user)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), ensure_ascii=False, indent=2))
    else:
        _show(report)
    if report.has_faults:
        raise typer.Exit(FOUND_FAULTS)


def _show(report: "ChatReport") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    thinking = {None: "", True: ", thinking on", False: ", thinking off"}
    for one in report.renderings:
        console.print(Text(f"--- {one.name}{thinking[one.thinking]}: {one.num_tokens} tokens", style="bold"))
        console.print(Text(one.text), end="")
        console.print(Text("⏎ generation begins here", style="dim"))
    table = Table(show_header=False, box=None, padding=(0, 1))
    for finding in report.findings:
        table.add_row(Text(finding.status, style=_COLOURS[finding.status]), Text(finding.check), Text(finding.detail))
    console.print(table)
