"""`megatron-spell data append`: add documents to a token store that is there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_spell.cli.data_show import Store
from megatron_spell.cli.refusal import refuse

if TYPE_CHECKING:
    from megatron_spell.data.append import AppendReport

Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Threads that tokenise; every core without it. Changes no byte")
]


def append(
    store: Store,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="As for `data build`")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="Model folder whose tokenizer the store was built by")],
    workers: Workers = None,
) -> None:
    """Add new documents to a token store as sets of their own, under the settings it was built with.

    Documents that it holds are left out. What is held out stays so.
    """
    from megatron_spell.data.append import append_store
    from megatron_spell.data.errors import BuildError, SourceError, StoreError
    from megatron_spell.text.tokenizer import Tokenizer, TokenizerError

    try:
        report = append_store(store, sources, Tokenizer.load(tokenizer), workers=workers)
    except TokenizerError as error:
        refuse(f"--tokenizer {tokenizer}: {error}")
    except (SourceError, BuildError, StoreError) as error:
        refuse(str(error))
    _print_report(report)


def _print_report(report: "AppendReport") -> None:
    typer.echo(
        f"{report.path}: {report.num_documents} documents added ({report.num_too_short} too short,"
        f" {report.num_duplicate} repeated and {report.num_known} that it held already left out),"
        f" {report.num_tokens} tokens, {report.num_sets['train']} training and {report.num_sets['heldout']} held-out"
        " sets"
    )
    if report.num_left_over:
        typer.echo(f"note: {report.num_left_over} new documents do not fill half a set on their side and were left out")
