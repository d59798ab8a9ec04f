"""`megatron-spell data`: build a token store and look into one. Heavy imports happen inside the commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_spell.cli.data_build import build
from megatron_spell.cli.refusal import refuse

if TYPE_CHECKING:
    from megatron_spell.data.store import StoreSummary, TokenStore

data_app = typer.Typer(no_args_is_help=True)
data_app.command()(build)

_SHOWN_SETS = 5
_BARS = 8
_BAR_WIDTH = 40


@data_app.command()
def show(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A token store that `data build` wrote")],
    set_id: Annotated[str | None, typer.Option("--set", help="List the documents of this set")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read all tokens and compare their checksum")] = False,
) -> None:
    """Print what a token store holds."""
    from megatron_spell.data.errors import StoreError
    from megatron_spell.data.store import TokenStore

    try:
        with TokenStore.open(store) as opened:
            if verify:
                opened.verify()
            if set_id is None:
                _print_store(store, opened, opened.summary(), verified=verify)
            else:
                _print_set(opened, set_id)
    except StoreError as error:
        refuse(str(error))


def _print_store(path: Path, store: "TokenStore", summary: "StoreSummary", *, verified: bool) -> None:
    dropped = ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in summary.num_dropped.items())
    settings = "  ".join(f"{name}={value}" for name, value in summary.settings.items())
    table = _table(str(path), "", "")
    for name, value in (
        ("sources", "\n".join(summary.sources)),
        ("built by", f"{summary.created_by}  {settings}"),
        ("tokenizer", summary.tokenizer_fingerprint[:12]),
        ("documents", f"{summary.num_documents} (left out: {dropped})"),
        ("tokens", str(summary.num_tokens)),
        ("sets", "  ".join(f"{number} {split}" for split, number in summary.num_sets.items())),
        ("checksum", "whole content verified" if verified else "index verified; --verify reads all tokens"),
        ("tokens a document", "\n".join(histogram(summary.document_lengths))),
    ):
        table.add_row(name, value)
    _print(table)
    sets = _table("some sets", "set", "split", "documents", "tokens", "begins with")
    for split in ("train", "heldout"):
        for set_id in store.set_ids(split)[:_SHOWN_SETS]:
            lengths = store.document_lengths(set_id)
            sets.add_row(set_id, split, str(len(lengths)), str(sum(lengths)), store.document_titles(set_id)[0])
    _print(sets)


def _print_set(store: "TokenStore", set_id: str) -> None:
    table = _table(f"{set_id} ({store.split_of(set_id)})", "document", "title", "tokens")
    for number, document in enumerate(store.document_set(set_id).documents):
        table.add_row(f"{number}  {document.doc_id}", document.title, str(document.num_tokens))
    _print(table)


def histogram(lengths: tuple[int, ...]) -> list[str]:
    """Lines "from - to  bar  count" over equal steps from the shortest to the longest."""
    low, high = min(lengths), max(lengths)
    step = max(1, -(-(high - low + 1) // _BARS))
    counts = [0] * (-(-(high - low + 1) // step))
    for length in lengths:
        counts[(length - low) // step] += 1
    width, most = len(str(high)), max(counts)
    return [
        f"{low + n * step:>{width}} - {min(high, low + (n + 1) * step - 1):>{width}}"
        f"  {'█' * -(-count * _BAR_WIDTH // most):<{_BAR_WIDTH}} {count}"
        for n, count in enumerate(counts)
    ]


def _table(title: str, *columns: str):
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table) -> None:
    from rich.console import Console

    # Titles come from documents: "[red]" or ":x:" in one is only text.
    Console(markup=False, emoji=False, highlight=False).print(table)
