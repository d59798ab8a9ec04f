"""A small suite of benchmark files, asked through the engines of a run that trains. The rule alone scores."""

from dataclasses import asdict, dataclass

from megatron_spell.config.schema import RunConfig
from megatron_spell.evaluation.asking import Asking, Protocol
from megatron_spell.evaluation.benchmark_folder import BenchmarkFolder
from megatron_spell.evaluation.preparing import chosen_records
from megatron_spell.evaluation.record import Record
from megatron_spell.evaluation.running import BenchmarkRunner
from megatron_spell.evaluation.summary import Figures, summarise
from megatron_spell.evaluation.writers import EngineWriter
from megatron_spell.selfplay.table import Table


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

    async def ask(self, table: Table, folder: BenchmarkFolder) -> dict[str, Figures]:
        """Every sample, what `folder` holds of them already included. Raises TooManyFailures, WriterGone, FolderError.

        Samples of other settings are thrown away: figures of one asking are of one suite.
        """
        if folder.faults(self.identity):
            folder.clear()
        folder.begin(self.identity, {})
        writer = EngineWriter(table.engine, table.tokenizer)
        runner = BenchmarkRunner(self.asking, writer, None, folder, self.concurrency, max_failures=0)
        await runner.run(self.records)
        asked = summarise(folder.read_results().values()).documents
        return asked.benchmarks if asked else {}


def suite_metrics(figures: dict[str, Figures]) -> dict[str, float]:
    """evaluation/<benchmark>/pass_at_1 and the like."""
    flat = {}
    for name, each in figures.items():
        flat |= {f"evaluation/{name}/pass_at_{k}": value.mean for k, value in each.pass_at.items()}
        flat[f"evaluation/{name}/truncated/share"] = each.truncated
        flat[f"evaluation/{name}/unfinished/share"] = each.unfinished
    return flat


def suite_line(figures: dict[str, Figures]) -> str:
    """The figures for a reader."""
    return ", ".join(
        f"{name} {each.score.mean:.1%} ({each.score.low:.1%} to {each.score.high:.1%},"
        f" {each.score.num_questions} records)"
        for name, each in figures.items()
    )
