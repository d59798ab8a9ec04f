"""`tokenizer-tools compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenizer_tools.commands.refusal import refusing

if TYPE_CHECKING:
    from tokenizer_tools.fertility import Comparison


@refusing
def compare(
    a: Annotated[Path, typer.Argument(help="A tokenizer: folder, tokenizer.json or sentencepiece model")],
    b: Annotated[Path, typer.Argument(help="The other one")],
    files: Annotated[list[Path], typer.Argument(help="Texts: .txt, .md, .jsonl, or folders, whose folders are kinds")],
    field: Annotated[str, typer.Option(help="Field of a .jsonl file that holds the text")] = "text",
    max_characters: Annotated[int | None, typer.Option(min=1, help="Read at most this much of each kind")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a plot of tokens a word, .png, .svg or .pdf")] = None,
) -> None:
    """Compare how many tokens two tokenizers need, by kind of document."""
    from tokenizer_tools import fertility
    from tokenizer_tools.fertility_plot import plot_comparison
    from tokenizer_tools.hf_tokenizer import load_tokenizer
    from tokenizer_tools.texts import read_texts

    result = fertility.compare(load_tokenizer(a), load_tokenizer(b), read_texts(files, field), max_characters)
    if plot is not None:
        plot_comparison(result, plot)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), ensure_ascii=False, indent=2))
    else:
        _show(result)


def _show(result: "Comparison") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for side, name in zip("AB", result.names):
        console.print(f"{side} {name}", highlight=False, soft_wrap=True)
    counts = Table("", "characters", "tokens A", "tokens B", "B / A", box=None)
    rates = Table("", "tokens/word", "chars/token", "bytes/token", "byte tokens", "unknown", title="A and B", box=None)
    for table in (counts, rates):
        for column in table.columns[1:]:
            column.justify = "right"
        table.columns[0].no_wrap, table.columns[0].max_width = True, 20
    for kind, (a, b) in result.counts.items():
        ratio = f"{b.num_tokens / max(1, a.num_tokens):.3f}"
        counts.add_row(kind, f"{a.num_characters:,}", f"{a.num_tokens:,}", f"{b.num_tokens:,}", ratio)
        pairs = [(one, other) for one, other in zip(a.rates().values(), b.rates().values())]
        numbers = [f"{one:.2f} {other:.2f}" for one, other in pairs[:3]]
        rates.add_row(kind, *numbers, *(f"{one:.2%} {other:.2%}" for one, other in pairs[3:]))
    console.print(counts)
    console.print(rates)
