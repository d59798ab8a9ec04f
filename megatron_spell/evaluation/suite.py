"""A small suite of benchmark files, asked through the engines of a run that trains. The rule alone scores."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from megatron_spell.config.schema import RunConfig
from megatron_spell.evaluation.asking import Asking, Protocol
from megatron_spell.evaluation.benchmark_folder import BenchmarkFolder
from megatron_spell.evaluation.figures import Estimate, accuracy, ladder, pass_at
from megatron_spell.evaluation.preparing import chosen_records
from megatron_spell.evaluation.record import Record
from megatron_spell.evaluation.results import SampleResult
from megatron_spell.evaluation.running import BenchmarkRunner
from megatron_spell.evaluation.writers import EngineWriter
from megatron_spell.selfplay.table import Table


@dataclass(frozen=True, slots=True)
class BenchmarkFigures:
    """Of one benchmark: `overall` is pass@1 with its interval, shares are of samples."""

    overall: Estimate
    pass_at: dict[int, float]
    truncated_share: float
    unfinished_share: float


def figures_of(results: Iterable[SampleResult], num_samples: int) -> dict[str, BenchmarkFigures]:
    """By benchmark, from every sample of every record."""
    of_benchmark: dict[str, list[SampleResult]] = defaultdict(list)
    for result in results:
        of_benchmark[result.benchmark].append(result)
    return {name: _figures(every, num_samples) for name, every in sorted(of_benchmark.items())}


@dataclass(frozen=True, slots=True, eq=False)
class Suite:
    """The records of `evaluation.suite` and how they are asked."""

    records: list[Record]
    asking: Asking
    identity: dict
    concurrency: int

    @classmethod
    def of(cls, config: RunConfig, table: Table) -> "Suite | None":
        """None where the settings name no files. Raises Unprepared."""
        settings = config.evaluation.suite
        if not settings.files:
            return None
        protocol = Protocol(
            samples=settings.samples,
            seed=config.seed,
            max_input_tokens=settings.max_input_tokens,
            max_tokens=config.sampling.max_tokens.responder,
            temperature=config.sampling.temperature,
            top_p=config.sampling.top_p,
        )
        return cls(
            records=chosen_records(settings.files, limit=settings.limit),
            asking=Asking(protocol, table.templates, table.chat, table.tokenizer),
            identity={"suite": settings.model_dump(mode="json"), **asdict(protocol)},
            concurrency=config.rollout.engines * config.rollout.max_num_seqs,
        )

    async def ask(self, table: Table, folder: BenchmarkFolder) -> dict[str, BenchmarkFigures]:
        """Every sample, what `folder` holds of them already included. Raises TooManyFailures, WriterGone, FolderError.

        Samples of other settings are thrown away: figures of one asking are of one suite.
        """
        if folder.faults(self.identity):
            folder.clear()
        folder.begin(self.identity, {})
        writer = EngineWriter(table.engine, table.tokenizer)
        runner = BenchmarkRunner(self.asking, writer, None, folder, self.concurrency, max_failures=0)
        await runner.run(self.records)
        return figures_of(folder.read_results().values(), self.asking.protocol.samples)


def suite_metrics(figures: dict[str, BenchmarkFigures]) -> dict[str, float]:
    """evaluation/<benchmark>/pass_at_1 and the like."""
    flat = {}
    for name, each in figures.items():
        flat |= {f"evaluation/{name}/pass_at_{k}": value for k, value in each.pass_at.items()}
        flat[f"evaluation/{name}/truncated_share"] = each.truncated_share
        flat[f"evaluation/{name}/unfinished_share"] = each.unfinished_share
    return flat


def suite_line(figures: dict[str, BenchmarkFigures]) -> str:
    """The figures for a reader."""
    return ", ".join(
        f"{name} {each.overall.mean:.1%} ({each.overall.low:.1%} to {each.overall.high:.1%},"
        f" {each.overall.num_questions} records)"
        for name, each in figures.items()
    )


def _figures(results: list[SampleResult], num_samples: int) -> BenchmarkFigures:
    num_right: dict[str, int] = defaultdict(int)
    for result in results:
        num_right[result.record_id] += result.score > 0
    rights = list(num_right.values())
    return BenchmarkFigures(
        overall=accuracy([right / num_samples for right in rights]),
        pass_at={k: sum(pass_at(r, num_samples, k) for r in rights) / len(rights) for k in ladder(num_samples)},
        truncated_share=sum(result.truncated_tokens > 0 for result in results) / len(results),
        unfinished_share=sum(not result.finished for result in results) / len(results),
    )
