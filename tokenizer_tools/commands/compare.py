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

    table = Table("kind", "characters", title=f"A {result.names[0]}   B {result.names[1]}", box=None)
    for column in ("tokens A", "tokens B", "B / A"):
        table.add_column(column, justify="right")
    for column in ("tokens a word", "characters a token", "byte tokens", "unknown"):
        table.add_column(f"{column} A", justify="right")
        table.add_column("B", justify="right")
    for kind, (a, b) in result.counts.items():
        rates = [(a.rates()[name], b.rates()[name]) for name in a.rates() if name != "bytes_per_token"]
        numbers = [f"{value:.2f}" for pair in rates[:2] for value in pair]
        shares = [f"{value:.2%}" for pair in rates[2:] for value in pair]
        ratio = f"{b.num_tokens / max(1, a.num_tokens):.3f}"
        table.add_row(kind, f"{a.num_characters:,}", f"{a.num_tokens:,}", f"{b.num_tokens:,}", ratio, *numbers, *shares)
    Console().print(table)
