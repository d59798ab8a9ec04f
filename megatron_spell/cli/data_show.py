"""`megatron-spell data show`, `verify`, `sample`, `stats`: look into a token store and check that it is whole."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_spell.cli.refusal import refuse

if TYPE_CHECKING:
    from megatron_spell.data.stats import Lengths, Share, StoreStatistics
    from megatron_spell.data.store import StoreSummary, TokenStore

DAMAGED = 1
_SHOWN_SETS = 5
_BARS = 8
_BAR_WIDTH = 40

Store = Annotated[Path, typer.Argument(metavar="STORE", help="A token store that `data build` wrote")]


@contextmanager
def _opened(path: Path) -> Iterator["TokenStore"]:
    from megatron_spell.data.errors import StoreError
    from megatron_spell.data.store import TokenStore

    try:
        with TokenStore.open(path) as store:
            yield store
    except StoreError as error:
        refuse(str(error))


def show(
    store: Store,
    set_id: Annotated[str | None, typer.Option("--set", help="List the documents of this set")] = None,
) -> None:
    """Print what a token store holds."""
    with _opened(store) as opened:
        if set_id is None:
            _print_store(store, opened, opened.summary())
        else:
            _print_set(opened, set_id)


def verify(store: Store) -> None:
    """Read every byte of a token store and compare it with the checksums. Exit code 1 when it is damaged."""
    from rich.console import Console
    from rich.progress import Progress

    from megatron_spell.data.errors import DamageError, StoreError
    from megatron_spell.data.verify import verify_store

    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
            task = bars.add_task("verify", total=store.stat().st_size if store.is_file() else None)
            verify_store(store, lambda num_bytes: bars.advance(task, num_bytes))
    except DamageError as error:
        typer.echo(f"megatron-spell: {error}", err=True)
        raise typer.Exit(DAMAGED) from None
    except StoreError as error:
        refuse(str(error))
    with _opened(store) as opened:
        summary = opened.summary()
    typer.echo(f"{store}: whole; {summary.num_documents} documents, {summary.num_tokens} tokens")


def sample(
    store: Store,
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="Model folder whose tokenizer the store was built by")],
    set_id: Annotated[str | None, typer.Option("--set", help="Print this set instead of one that is drawn")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw among all sets")] = 0,
    chars: Annotated[int | None, typer.Option("--chars", min=1, help="Print so much of each document")] = None,
) -> None:
    """Print the documents of a set, drawn at random, as the text that its token ids stand for."""
    from megatron_spell.text.tokenizer import Tokenizer, TokenizerError

    with _opened(store) as opened:
        try:
            loaded = Tokenizer.load(tokenizer)
        except TokenizerError as error:
            refuse(f"--tokenizer {tokenizer}: {error}")
        if loaded.fingerprint != opened.tokenizer_fingerprint:
            refuse(f"--tokenizer {tokenizer}: {store} was built with another one; give that")
        chosen = opened.document_set(set_id or _drawn(opened, seed))
        typer.echo(f"{chosen.set_id} ({chosen.split}): {len(chosen.documents)} documents, {chosen.num_tokens} tokens")
        for number, document in enumerate(chosen.documents):
            text = loaded.decode(document.token_ids_T)
            rest = f" [... {len(text) - chars} characters more]" if chars and len(text) > chars else ""
            typer.echo(f"\n--- {number}  {document.doc_id}  {document.title}  ({document.num_tokens} tokens)")
            typer.echo(text[:chars] + rest)


def stats(
    store: Store,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the histograms there (.svg, .png, .pdf)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables")] = False,
) -> None:
    """Lengths of documents and sets, what is held out, and what each source gave."""
    from megatron_spell.data.stats import plot_lengths, statistics_of

    with _opened(store) as opened:
        statistics, lengths = statistics_of(opened), opened.all_document_lengths()
        if plot is not None:
            try:
                plot_lengths(opened, plot)
            except (OSError, ValueError) as error:
                refuse(f"--plot {plot}: cannot be written: {str(error).splitlines()[0]}")
    if as_json:
        typer.echo(json.dumps(asdict(statistics)))
        return
    _print_statistics(statistics, lengths)
    if plot is not None:
        typer.echo(f"drawn in {plot}")


def histogram(lengths: Iterable[int]) -> list[str]:
    """Lines "from - to  bar  count" over equal steps from the shortest to the longest."""
    import numpy as np

    lengths = np.asarray(lengths)
    low, high = int(lengths.min()), int(lengths.max())
    step = max(1, -(-(high - low + 1) // _BARS))
    counts = np.bincount((lengths - low) // step, minlength=-(-(high - low + 1) // step)).tolist()
    width, most = len(str(high)), max(counts)
    return [
        f"{low + n * step:>{width}} - {min(high, low + (n + 1) * step - 1):>{width}}"
        f"  {'█' * -(-count * _BAR_WIDTH // most):<{_BAR_WIDTH}} {count}"
        for n, count in enumerate(counts)
    ]


def _drawn(store: "TokenStore", seed: int) -> str:
    from megatron_spell.types.seeds import stream_seed

    set_ids = store.set_ids("train") + store.set_ids("heldout")
    return set_ids[stream_seed(seed, "sample") % len(set_ids)]


def _print_store(path: Path, store: "TokenStore", summary: "StoreSummary") -> None:
    dropped = ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in summary.num_dropped.items())
    settings = "  ".join(f"{name}={value}" for name, value in summary.settings.items())
    added = f"\nadded to since: {summary.num_builds - 1}" if summary.num_builds > 1 else ""
    sources = zip(summary.sources, summary.source_fingerprints, strict=True)
    table = _table(str(path), "", "")
    for name, value in (
        ("sources", "\n".join(f"{source}  ({fingerprint[:12]})" for source, fingerprint in sources)),
        ("built by", f"{summary.created_by}  {settings}{added}"),
        ("tokenizer", summary.tokenizer_fingerprint[:12]),
        ("documents", f"{summary.num_documents} (left out: {dropped})"),
        ("tokens", str(summary.num_tokens)),
        ("sets", "  ".join(f"{number} {split}" for split, number in summary.num_sets.items())),
        ("tokens a document", "\n".join(histogram(store.all_document_lengths()))),
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
    chosen = store.document_set(set_id)
    table = _table(f"{set_id} ({chosen.split})", "document", "title", "tokens")
    for number, document in enumerate(chosen.documents):
        table.add_row(f"{number}  {document.doc_id}", document.title, str(document.num_tokens))
    _print(table)


def _print_statistics(statistics: "StoreStatistics", document_lengths: Iterable[int]) -> None:
    from megatron_spell.data.stats import QUANTILES

    quantiles = [f"{quantile:.0%}" for quantile in QUANTILES]
    table = _table("lengths", "", "number", "in all", "mean", "shortest", *quantiles, "longest")
    for name, lengths in (
        ("tokens a document", statistics.document_tokens),
        ("tokens a set", statistics.set_tokens),
        ("documents a set", statistics.set_documents),
    ):
        table.add_row(name, *_cells(lengths))
    _print(table)
    for title, shares in (("splits", statistics.splits), ("sources", statistics.sources)):
        _print(_shares_table(title, shares))
    _print("tokens a document\n" + "\n".join(histogram(document_lengths)))


def _cells(lengths: "Lengths") -> list[str]:
    exact = (lengths.shortest, *lengths.quantiles, lengths.longest)
    return [f"{lengths.num:,}", f"{lengths.total:,}", f"{lengths.mean:,.1f}", *(f"{value:,}" for value in exact)]


def _shares_table(title: str, shares: "tuple[Share, ...]"):
    table = _table(title, "", "sets", "documents", "tokens", "of all tokens")
    total = sum(share.num_tokens for share in shares)
    for share in shares:
        counts = (share.num_sets, share.num_documents, share.num_tokens)
        table.add_row(share.name, *(f"{count:,}" for count in counts), f"{share.num_tokens / total:.1%}")
    return table


def _table(title: str, *columns: str):
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(shown) -> None:
    from rich.console import Console

    # Titles come from documents: "[red]" or ":x:" in one is only text.
    Console(markup=False, emoji=False, highlight=False).print(shown)
