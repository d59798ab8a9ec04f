"""`megatron-spell evaluate`: a model on the paper's benchmarks. Heavy imports happen inside the command."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_spell.cli.evaluate_check import check_files
from megatron_spell.cli.refusal import refuse
from megatron_spell.cli.run_file import Overrides
from megatron_spell.config.load import ConfigError, load_settings

if TYPE_CHECKING:
    from megatron_spell.config.benchmark_run import BenchmarkRunConfig
    from megatron_spell.evaluation.command import Conducted
    from megatron_spell.evaluation.preparing import Prepared
    from megatron_spell.evaluation.tables import Table

INCOMPLETE = 1
_SHOWN_FAILURES = 5
_SHOWN_TABLES = 2  # of the report, on the terminal
Files = Annotated[
    list[str] | None, typer.Argument(metavar="FILES...", help="Benchmark files; NAME=FILE where the fields do not tell")
]


def evaluate(
    files: Files = None,
    check: Annotated[bool, typer.Option("--check", help="Only say what the files hold and lack")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of results; an interrupted one is gone on")] = None,
    model: Annotated[Path | None, typer.Option("--model", help="Model folder, for vLLM engines of our own")] = None,
    server: Annotated[str | None, typer.Option("--server", help="Or a server that writes, http://host:port")] = None,
    served_model: Annotated[str | None, typer.Option("--served-model", help="Its name there, if not the only")] = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="Folder of a server's tokenizer")] = None,
    judge: Annotated[str | None, typer.Option("--judge", help="Server of the judge, http://host:port")] = None,
    judge_model: Annotated[str | None, typer.Option("--judge-model", help="Its name there, if not the only")] = None,
    beside: Annotated[
        list[Path] | None, typer.Option("--beside", help="Folder of another evaluation for the report; many")
    ] = None,
    rule_only: Annotated[bool, typer.Option("--rule-only", help="No judge")] = False,
    no_documents: Annotated[bool, typer.Option("--no-documents", help="Withhold the documents: a baseline")] = False,
    benchmarks: Annotated[str | None, typer.Option("--benchmarks", help="Only these, with commas between")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="First records of each file")] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Of each record (8)")] = None,
    max_input_tokens: Annotated[
        int | None, typer.Option("--max-input-tokens", help="Longer prompts lose their middle (16384)")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Longest output (4096)")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML of these and further settings")] = None,
    overrides: Overrides = None,
) -> None:
    """Ask a model the questions of benchmark files, and score the answers by rule and judge (docs/evaluation.md).

    Given again with the same --out it goes on: no request that was answered is made again. Exit codes: 0 every sample
    is there; 1 some are missing, to be asked for by the next call; 2 nothing was begun, with a line for each reason.
    """
    if check:
        raise typer.Exit(check_files(files) if files else refuse("FILES: give the files to check"))
    given = {
        "files": files or None,
        "out": _text(out),
        "model": _text(model),
        "tokenizer": _text(tokenizer),
        "server": _named(url=server, model=served_model),
        "judge": _named(url=judge, model=judge_model),
        "beside": [str(path) for path in beside or ()] or None,
        "rule_only": rule_only or None,
        "no_documents": no_documents or None,
        "benchmarks": benchmarks and [name.strip() for name in benchmarks.split(",")],
        "limit": limit,
        "samples": samples,
        "max_input_tokens": max_input_tokens,
        "max_tokens": max_tokens,
    }
    raise typer.Exit(_evaluate(_settings(config, overrides, given)))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _named(**values: Any) -> dict[str, Any] | None:
    return {name: value for name, value in values.items() if value is not None} or None


def _settings(config: Path | None, overrides: list[str] | None, given: dict[str, Any]) -> "BenchmarkRunConfig":
    from megatron_spell.config.benchmark_run import BenchmarkRunConfig

    try:
        return load_settings(BenchmarkRunConfig, config, overrides or (), _named(**given))
    except ConfigError as error:
        refuse(*error.lines)


def _evaluate(config: "BenchmarkRunConfig") -> int:
    from rich.console import Console

    from megatron_spell.evaluation.preparing import Unprepared, prepare

    console = Console(highlight=False, soft_wrap=True)
    try:
        prepared = prepare(config, on_cpu=not Path("/dev/nvidiactl").exists())
    except Unprepared as error:
        refuse(*error.lines)
    num_samples = len(prepared.records) * config.samples
    console.print(f"{len(prepared.records)} records, {config.samples} sample(s) each: {num_samples}; into {config.out}")
    for note in prepared.notes:
        console.print(f"note: {note}")
    return _conduct(config, prepared, console)


def _conduct(config: "BenchmarkRunConfig", prepared: "Prepared", console: Any) -> int:
    import asyncio

    from megatron_spell.cluster.handles import ClusterError
    from megatron_spell.evaluation.benchmark_folder import FolderError
    from megatron_spell.evaluation.command import conduct
    from megatron_spell.evaluation.journal import JournalBusy
    from megatron_spell.evaluation.preparing import Unprepared
    from megatron_spell.evaluation.running import TooManyFailures
    from megatron_spell.evaluation.writers import WriterGone
    from megatron_spell.rollout.engine import EngineError

    try:
        conducted = asyncio.run(conduct(config, prepared, os.environ, console))
    except (Unprepared, FolderError) as error:
        refuse(*error.lines)
    except JournalBusy as error:
        refuse(str(error))
    except (TooManyFailures, WriterGone, EngineError, ClusterError) as error:
        typer.echo(f"megatron-spell: {error}; what was finished is kept, give the command again to go on", err=True)
        return INCOMPLETE
    return _report(config, conducted, console)


def _report(config: "BenchmarkRunConfig", conducted: "Conducted", console: Any) -> int:
    from megatron_spell.evaluation.paper import find_model
    from megatron_spell.evaluation.report import write_report

    paper = find_model(config.paper_model or conducted.label)
    made = write_report(conducted.folder, config.beside, paper, conducted.tally.num_left)
    for table in made[:_SHOWN_TABLES]:
        console.print(_drawn(table))
    console.print(f"{_counted(conducted)}; report: {conducted.folder.root / 'report.html'}")
    return _missing(conducted)


def _drawn(table: "Table") -> Any:
    from rich import box
    from rich.table import Table as Drawn

    drawn = Drawn(*table.header, title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def _counted(conducted: "Conducted") -> str:
    tally, judge = conducted.tally, conducted.judge
    parts = [f"{tally.kept} samples were there", f"{tally.written} written", f"{tally.scored} scored"]
    if judge is not None:
        judged = judge.judged
        parts.append(f"{judged.asked} judgments asked for, {judged.known} known, {tally.unclear} samples judge_unclear")
    parts.append(f"{conducted.num_retries} retries")
    return ", ".join(parts)


def _missing(conducted: "Conducted") -> int:
    tally = conducted.tally
    for failure in tally.failures[:_SHOWN_FAILURES]:
        typer.echo(f"megatron-spell: {failure}", err=True)
    if tally.num_left:
        left = f"{tally.num_left} of {tally.total} samples are missing"
        typer.echo(f"megatron-spell: {left}; give the command again to ask for them alone", err=True)
        return INCOMPLETE
    return 0
