"""`megatron-spell data`: build a token store, add to one and look into it. Heavy imports happen inside the commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_spell.cli.data_append import Workers, append
from megatron_spell.cli.data_show import sample, show, stats, verify
from megatron_spell.cli.refusal import refuse

if TYPE_CHECKING:
    from megatron_spell.data.build import BuildReport

data_app = typer.Typer(no_args_is_help=True)

Sources = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE...", help="python-topics, or folders and files of .txt, .md and .jsonl"),
]
Out = Annotated[Path, typer.Option("--out", help="HDF5 file to write; replaced only when the new one is whole")]
TokenizerFolder = Annotated[Path, typer.Option("--tokenizer", help="Model folder whose tokenizer is used")]
SetSize = Annotated[int, typer.Option("--set-size", help="Documents in a set: half as many to twice as many")]
MaxChars = Annotated[
    int | None, typer.Option("--max-chars", help="Cut longer documents; python-topics is cut at 280 without it")
]
MinChars = Annotated[int, typer.Option("--min-chars", help="Drop shorter documents")]
Heldout = Annotated[float, typer.Option("--heldout", help="Share of the documents that is never trained on")]
Seed = Annotated[int, typer.Option("--seed", help="Of the grouping and the held-out sets")]


@data_app.command()
def build(
    sources: Sources,
    out: Out,
    tokenizer: TokenizerFolder,
    set_size: SetSize = 16,
    max_chars: MaxChars = None,
    min_chars: MinChars = 80,
    heldout: Heldout = 0.15,
    seed: Seed = 0,
    workers: Workers = None,
) -> None:
    """Read documents, group them into sets of related ones, tokenise them, and write a token store."""
    from megatron_spell.data.build import build_store
    from megatron_spell.data.errors import BuildError, SourceError
    from megatron_spell.data.settings import BuildSettings
    from megatron_spell.text.tokenizer import Tokenizer, TokenizerError

    try:
        settings = BuildSettings(set_size, max_chars, min_chars, heldout, seed)
        loaded = Tokenizer.load(tokenizer)
        report = build_store(sources, loaded, out, settings, workers=workers)
    except TokenizerError as error:
        refuse(f"--tokenizer {tokenizer}: {error}")
    except (SourceError, BuildError) as error:
        refuse(str(error))
    _print_report(report)


for command in (append, show, verify, sample, stats):
    data_app.command()(command)


def _print_report(report: "BuildReport") -> None:
    typer.echo(
        f"{report.path}: {report.num_documents} documents ({report.num_too_short} too short and"
        f" {report.num_duplicate} repeated ones left out), {report.num_tokens} tokens,"
        f" {report.num_sets['train']} training and {report.num_sets['heldout']} held-out sets"
    )
    for note in report.notes:
        typer.echo(f"note: {note}")
