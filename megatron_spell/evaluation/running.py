"""Every sample of every record once: written, kept, scored, judged, kept. Goes on where it stopped."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from megatron_spell.evaluation.asking import Asking, Prompts
from megatron_spell.evaluation.benchmark_folder import BenchmarkFolder, Output
from megatron_spell.evaluation.endpoint import EndpointError
from megatron_spell.evaluation.journal import Journal
from megatron_spell.evaluation.judge import Judge
from megatron_spell.evaluation.protocol import answer_score, asks_judge, judge_prompt, read_answer
from megatron_spell.evaluation.record import Record
from megatron_spell.evaluation.results import SampleResult
from megatron_spell.evaluation.writers import Writer, sample_seed
from megatron_spell.observe.files import json_line
from megatron_spell.rollout.engine import EngineError
from megatron_spell.selfplay.together import all_of


class TooManyFailures(ValueError):
    """More requests were given up than the settings allow; the message holds the last reason."""


@dataclass(slots=True)
class Tally:
    """Samples, out of `total`: `kept` were finished before, `written` and `scored` are of this run."""

    total: int = 0
    kept: int = 0
    written: int = 0
    scored: int = 0
    truncated: int = 0
    unclear: int = 0  # the judge gave no verdict: the rule alone counts
    failures: list[str] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        return self.total - self.kept - self.scored


@dataclass(slots=True, eq=False)
class BenchmarkRunner:
    """`judge` None: the rule alone scores. `concurrency` samples are under way at the same time.

    A request that is given up leaves its sample for the next run; beyond `max_failures` of them the run ends.
    `tell(tally)` hears of every sample.
    """

    asking: Asking
    writer: Writer
    judge: Judge | None
    folder: BenchmarkFolder
    concurrency: int
    max_failures: int
    tell: Callable[[Tally], None] = lambda tally: None

    async def run(self, records: Sequence[Record]) -> Tally:
        """Raises TooManyFailures, WriterGone, FolderError, JournalBusy. What was finished until then is kept."""
        outputs, results = Journal(self.folder.outputs), Journal(self.folder.results)
        try:
            tally = Tally(total=len(records) * self.asking.protocol.samples)
            work = self._work(records, tally)
            prompts = Prompts(self.asking, kept=self.concurrency + 1)
            async with all_of() as group:
                for _ in range(min(self.concurrency, tally.total)):
                    group.create_task(self._take(work, prompts, outputs, results, tally))
            return tally
        finally:
            outputs.close()
            results.close()

    def _work(self, records: Sequence[Record], tally: Tally) -> Iterator[tuple[Record, int, Output | None]]:
        """The samples that have no result, with what was written of them; those of one record in a row."""
        written, finished = self.folder.read_outputs(), self.folder.read_results()
        documents, samples = self.asking.protocol.documents, range(self.asking.protocol.samples)
        keys = [
            (record, sample, (record.benchmark, documents, record.record_id, sample))
            for record in records
            for sample in samples
        ]
        tally.kept = sum(key in finished for _, _, key in keys)
        return iter([(record, sample, written.get(key)) for record, sample, key in keys if key not in finished])

    async def _take(
        self,
        work: Iterator[tuple[Record, int, Output | None]],
        prompts: Prompts,
        outputs: Journal,
        results: Journal,
        tally: Tally,
    ) -> None:
        for record, sample, output in work:
            try:
                if output is None:
                    output = await self._write(record, sample, prompts)
                    outputs.append(json_line(output.model_dump()))
                    tally.written += 1
                result = await self._score(record, output, tally)
            except (EndpointError, EngineError) as error:
                tally.failures.append(f"{record.benchmark} {record.record_id!r}, sample {sample}: {error}")
                if len(tally.failures) > self.max_failures:
                    raise TooManyFailures(
                        f"{len(tally.failures)} requests were given up, more than max_failures = {self.max_failures};"
                        f" the last: {tally.failures[-1]}"
                    ) from None
            else:
                results.append(result.line())
                tally.scored += 1
                tally.truncated += result.truncated_tokens > 0
            self.tell(tally)

    async def _write(self, record: Record, sample: int, prompts: Prompts) -> Output:
        asked = await prompts.of(record)
        spec = self.asking.spec(record, sample)
        key = f"{record.benchmark}/{record.record_id}"
        written = await self.writer.write(asked.prompt_ids_T, spec, asked.text, key)
        return Output(
            benchmark=record.benchmark,
            record_id=record.record_id,
            documents=self.asking.protocol.documents,
            sample=sample,
            seed=sample_seed(spec.seed or 0, sample),
            prompt_tokens=asked.prompt_tokens,
            truncated_tokens=asked.truncated_tokens,
            finish_reason=written.finish_reason,
            num_tokens=written.num_tokens,
            text=written.text,
        )

    async def _score(self, record: Record, output: Output, tally: Tally) -> SampleResult:
        parsed = read_answer(record, output.text, finished=output.finish_reason == "stop")
        rule, judged = answer_score(record, parsed), None
        if self.judge is not None and parsed is not None and asks_judge(record, parsed, rule):
            verdict = await self.judge.verdict(judge_prompt(record, parsed))
            judged = None if verdict is None else float(verdict)
            tally.unclear += verdict is None
        same = output.model_dump(exclude={"text"})
        return SampleResult(
            **same,
            kind=record.kind,
            prediction=parsed,
            rule_score=rule,
            judge_score=judged,
            score=max(rule, judged or 0.0),
        )
