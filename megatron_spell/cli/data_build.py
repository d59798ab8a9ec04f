"""`megatron-spell data build`: from documents to a token store. Heavy imports happen inside the command."""

import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_spell.cli.refusal import refuse

if TYPE_CHECKING:
    from megatron_spell.data.build import BuildReport
    from megatron_spell.data.corpus.plan import Corpus
    from megatron_spell.data.corpus.settings import CorpusSettings
    from megatron_spell.data.settings import BuildSettings

_PYTHON_TOPICS = "python-topics"

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="python-topics, or folders and files: .txt .md .html .pdf .jsonl .json .jsonl.gz .json.gz .parquet .arrow,"
        " and folders that datasets.save_to_disk wrote",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="HDF5 file to write; replaced only when the new one is whole")]
TokenizerFolder = Annotated[Path, typer.Option("--tokenizer", help="Model folder whose tokenizer is used")]
SetSize = Annotated[int, typer.Option("--set-size", help="Documents in a set: half as many to twice as many")]
MaxChars = Annotated[
    int | None, typer.Option("--max-chars", help="Cut longer documents; python-topics is cut at 280 without it")
]
MinChars = Annotated[
    int | None, typer.Option("--min-chars", help="Drop shorter documents; without it 80 with filters none, else 100")
]
Heldout = Annotated[float, typer.Option("--heldout", help="Share of the documents that is never trained on")]
Seed = Annotated[int, typer.Option("--seed", help="Of the grouping and the held-out sets")]
FilterSet = Annotated[
    str | None,
    typer.Option(
        "--filters",
        help="none: only short and repeated documents are dropped; paper: also those over 32,768 characters, of a"
        " quality under 1, and near duplicates; web: also what does not read like prose (English). Without it: none for"
        " python-topics alone, else paper",
    ),
]
MinQuality = Annotated[float | None, typer.Option("--min-quality", help="Least quality, for records that state one")]
NearDuplicates = Annotated[
    float | None, typer.Option("--near-duplicates", help="Similarity of a near duplicate; 0 keeps them (paper: 0.8)")
]
Decontaminate = Annotated[
    list[Path] | None, typer.Option("--decontaminate", help="Benchmark file whose text no document may share; repeat")
]
TextField = Annotated[
    list[str] | None, typer.Option("--text-field", help="Field of a record that holds its text (text); repeat")
]
QualityField = Annotated[str, typer.Option("--quality-field", help="Field of a record that holds its quality")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Count what cannot be read, by file, instead of ending with exit code 2")
]
EmbeddingModel = Annotated[
    Path | None, typer.Option("--embedding-model", help="Folder of a sentence-embedding model to group by, not TF-IDF")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes and threads; every core without it. Changes no byte"),
]
Work = Annotated[Path | None, typer.Option("--work", help="Folder for what is under way (OUT.work)")]
KeepWork = Annotated[bool, typer.Option("--keep-work", help="Keep that folder for the next build")]
ReportFolder = Annotated[Path | None, typer.Option("--report", help="Folder for the report (OUT.report)")]


def build(
    sources: Sources,
    out: Out,
    tokenizer: TokenizerFolder,
    set_size: SetSize = 16,
    max_chars: MaxChars = None,
    min_chars: MinChars = None,
    heldout: Heldout = 0.15,
    seed: Seed = 0,
    filters: FilterSet = None,
    min_quality: MinQuality = None,
    near_duplicates: NearDuplicates = None,
    decontaminate: Decontaminate = None,
    text_field: TextField = None,
    quality_field: QualityField = "quality",
    skip_bad: SkipBad = False,
    embedding_model: EmbeddingModel = None,
    workers: Workers = None,
    work: Work = None,
    keep_work: KeepWork = False,
    report: ReportFolder = None,
) -> None:
    """Read documents, filter them, group them into sets of related ones, tokenise them, and write a token store.

    A build that was stopped goes on from its work folder when it is given again.
    """
    from megatron_spell.data.errors import BuildError, SourceError
    from megatron_spell.data.tokenise import num_cores
    from megatron_spell.text.embedding import EmbeddingError
    from megatron_spell.text.tokenizer import TokenizerError

    try:
        chosen = filters or ("none" if set(sources) == {_PYTHON_TOPICS} else "paper")
        settings = _build_settings(chosen, set_size, max_chars, min_chars, heldout, seed)
        corpus = _corpus_settings(
            chosen, min_quality, near_duplicates, decontaminate, text_field, quality_field, skip_bad
        )
        _build(
            sources=sources,
            out=out,
            tokenizer=tokenizer,
            settings=settings,
            corpus=corpus,
            embedding_model=embedding_model,
            workers=workers or num_cores(),
            work=work,
            keep_work=keep_work,
            report=report,
        )
    except TokenizerError as error:
        refuse(f"--tokenizer {tokenizer}: {error}")
    except EmbeddingError as error:
        refuse(f"--embedding-model {embedding_model}: {error}")
    except (SourceError, BuildError) as error:
        refuse(str(error))


def _build_settings(
    filters: str, set_size: int, max_chars: int | None, min_chars: int | None, heldout: float, seed: int
) -> "BuildSettings":
    from megatron_spell.data.corpus.settings import MIN_CHARS
    from megatron_spell.data.settings import BuildSettings

    if filters not in MIN_CHARS:
        refuse(f"--filters {filters}: unknown; give {', '.join(MIN_CHARS)}")
    return BuildSettings(set_size, max_chars, MIN_CHARS[filters] if min_chars is None else min_chars, heldout, seed)


def _corpus_settings(
    filters: str,
    min_quality: float | None,
    near_duplicates: float | None,
    decontaminate: list[Path] | None,
    text_field: list[str] | None,
    quality_field: str,
    skip_bad: bool,
) -> "CorpusSettings":
    from megatron_spell.data.corpus.settings import PRESETS, CorpusSettings
    from megatron_spell.data.readers.slices import ReadOptions

    asked = {"min_quality": min_quality, "near_duplicates": near_duplicates}
    return CorpusSettings(
        read=ReadOptions(tuple(text_field or ("text",)), quality_field),
        filters=replace(PRESETS[filters], **{name: value for name, value in asked.items() if value is not None}),
        decontaminate=tuple(decontaminate or ()),
        skip_bad=skip_bad,
    )


def _build(
    *,
    sources: list[str],
    out: Path,
    tokenizer: Path,
    settings: "BuildSettings",
    corpus: "CorpusSettings",
    embedding_model: Path | None,
    workers: int,
    work: Path | None,
    keep_work: bool,
    report: Path | None,
) -> None:
    from megatron_spell.data.build import build_store
    from megatron_spell.data.corpus.plan import CorpusPlanner
    from megatron_spell.data.corpus.report import write_report
    from megatron_spell.data.corpus.work import WorkFolder
    from megatron_spell.data.errors import BuildError
    from megatron_spell.data.progress import BuildProgress
    from megatron_spell.text.embedding import TextEmbedder
    from megatron_spell.text.tokenizer import Tokenizer

    if out.is_dir():
        raise BuildError(f"out = {out}: is a folder; give the path of a file")
    work, report = work or out.with_name(f"{out.name}.work"), report or out.with_name(f"{out.name}.report")
    loaded = Tokenizer.load(tokenizer)
    embedder = TextEmbedder.load(embedding_model) if embedding_model else None
    with ExitStack() as stack:
        folder = stack.enter_context(WorkFolder(work))
        with BuildProgress() as progress:
            planned = CorpusPlanner(settings, corpus, folder, workers, embedder, progress.step).plan(sources)
        built = build_store(sources, loaded, out, settings, workers=workers, corpus=planned)
        benchmarks = [str(path) for path in corpus.decontaminate]
        write_report(planned, settings, benchmarks, shlex.join(["megatron-spell", *sys.argv[1:]]), report)
        if not keep_work:
            folder.remove()
    _print_report(built, planned, report)


def _print_report(built: "BuildReport", planned: "Corpus", report: Path) -> None:
    others = {reason: num for reason, num in built.num_dropped.items() if reason not in ("too_short", "duplicate")}
    more = "".join(f", {num} {reason.replace('_', ' ')}" for reason, num in others.items())
    typer.echo(
        f"{built.path}: {built.num_documents} documents ({built.num_too_short} too short and"
        f" {built.num_duplicate} repeated ones left out{more}), {built.num_tokens} tokens,"
        f" {built.num_sets['train']} training and {built.num_sets['heldout']} held-out sets"
    )
    for _, path, first, num in planned.faults:
        typer.echo(f"note: {num} bad in {path}, left out; the first: {first}")
    for note in built.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"report: {report / 'report.md'}")
