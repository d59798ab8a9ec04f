"""A run under way, as rank 0 holds it: what the loop's verbs do."""

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console

from megatron_spell.algo.flops import ForwardFlops
from megatron_spell.algo.losses import row_weights
from megatron_spell.algo.packing import pack
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.curriculum.curriculum import Curriculum
from megatron_spell.data.questions import KnownQuestion
from megatron_spell.evaluation.held_out import evaluate
from megatron_spell.evaluation.suite import Suite, suite_line, suite_metrics
from megatron_spell.observe import spans
from megatron_spell.observe.files import json_line, write_whole
from megatron_spell.observe.metrics import packing_metrics, round_metrics, row_metrics
from megatron_spell.observe.progress import CollectProgress
from megatron_spell.observe.sinks import Sinks
from megatron_spell.observe.transcripts import write_rounds
from megatron_spell.policy.step import StepReport
from megatron_spell.selfplay.assemble import assemble
from megatron_spell.selfplay.collector import Collector, Taken
from megatron_spell.selfplay.table import Table
from megatron_spell.train.background import Background
from megatron_spell.train.checkpoints import CheckpointError, Checkpoints, none_is_whole
from megatron_spell.train.crew import Crew
from megatron_spell.train.memory import MemoryWatch
from megatron_spell.train.refresh import Refresh, Refreshed
from megatron_spell.train.run_folder import RunFolder, write_json
from megatron_spell.train.saved_state import SavedState
from megatron_spell.train.suite_log import SuiteLog
from megatron_spell.train.summary import summarise, summary_table
from megatron_spell.train.watch import CollapseWatch
from megatron_spell.types.batches import PackedBatch, TrainRow
from megatron_spell.types.seeds import stream_seed


class NothingToTrain(ValueError):
    """A step's rounds hold no group with any signal for the roles that are trained."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    rows: list[TrainRow]
    packed: PackedBatch


@dataclass(slots=True, eq=False)
class Run:
    """`step` optimizer steps are taken; that is also the version of the weights in policy and engines."""

    config: RunConfig
    folder: RunFolder
    crew: Crew
    table: Table
    curriculum: Curriculum
    collector: Collector
    refresh: Refresh
    questions: list[KnownQuestion]
    suite: Suite | None
    memory: MemoryWatch
    watch: CollapseWatch
    background: Background
    console: Console
    shut: Callable[[], None]
    step: int = 0
    refreshed: Refreshed | None = None
    sinks: Sinks | None = None
    saving: Future[None] | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder.checkpoints, self.config.checkpoint.keep)

    def restore(self) -> None:
        """Take policy and state from the newest whole checkpoint, or the policy from `model.path`; fill the engines.

        Raises CheckpointError when there are checkpoints and none is whole.
        """
        checkpoint, torn = self.checkpoints.latest()  # rank 0 decides; the others are told which
        for line in torn:
            self.console.print(line)
        if checkpoint is None and torn:
            raise CheckpointError(none_is_whole(self.checkpoints, torn))
        if checkpoint is None:
            self.crew.call("load_hf", self.config.model.path)
        else:
            state = SavedState.load(checkpoint)
            self.crew.call("load", checkpoint / "policy")
            self.curriculum.load_state(state.curriculum)
            self.collector.load_state(state.collector)
            self.watch.load_state(state.watch)
            self.step = state.step
            self.console.print(f"going on after step {state.step} from {checkpoint}")
        write_whole(self.folder.evaluations, (json_line(e) for e in self.evaluations() if e["step"] <= self.step))
        SuiteLog(self.folder).forget_after(self.step)
        self.sinks = Sinks.open(self.config.observe.sinks, self.folder.root, next_step=self.step + 1)
        self.publish(version=self.step)
        spans.seconds()  # what happened before the first step belongs to no step

    def collect(self) -> Taken:
        """The rounds of the next step. With `algo.max_staleness` later ones go on being played after it."""
        num_later = self.config.steps - self.step - 1
        progress = CollectProgress(self.step + 1, self.config.play.questions_per_step, self.console)
        with spans.span("collect", step=self.step + 1), progress:
            taking = self.collector.take(self.step, num_later, progress.round_ended)
            return self.refresh.while_playing(taking, self.step)

    def observe(self, taken: Taken) -> None:
        """Let the curriculum take in the step's rounds; given questions do not move it."""

        async def observe() -> None:
            self.curriculum.observe(taken.rounds)

        if self.config.play.questions is None:
            self.background.run(observe())  # where rounds that are still being begun draw from it

    def assemble(self, taken: Taken) -> Batch:
        """Rows and bins of the step. Raises NothingToTrain."""
        rng = np.random.default_rng(stream_seed(self.config.seed, "assemble", self.step))
        rows = assemble(taken.rounds, self.config.algo, rng)
        if not rows:
            raise NothingToTrain(
                f"algo.train_roles = {', '.join(self.config.algo.train_roles)}: no group of theirs has any signal in"
                f" step {self.step + 1}; train more roles or raise play.questions_per_step"
            )
        policy = self.config.policy
        weights = row_weights(rows, self.config.algo.loss, self.config.algo.role_weights)
        packed = pack(
            rows,
            weights,
            num_dp=policy.mesh.dp,
            max_bin_tokens=policy.max_bin_tokens,
            pad_multiple=policy.bin_multiple,
            num_bins_multiple=policy.num_bins_multiple,
            attention_tokens=ForwardFlops.of(ModelShape.load(self.config.model.path)).attention_tokens,
            share_prompts=policy.share_prompts,
        )
        return Batch(rows, packed)

    def update(self, batch: Batch) -> StepReport:
        with spans.span("update", step=self.step + 1):
            self.refresh.rest()
            return self.crew.call("update", batch.packed)

    def publish(self, version: int) -> None:
        """Bring the policy's weights into every engine, as `version`."""
        with spans.span("publish", version=version):
            self.refreshed = self.refresh.publish(version)
        self.step = version

    def record(self, taken: Taken, batch: Batch, report: StepReport) -> None:
        """One line of metrics and one file of transcripts for the step just taken."""
        if self.config.observe.rounds:
            write_rounds(self.folder.rounds(self.step), taken.rounds, decode=self.table.tokenizer.decode)
        metrics = {
            **round_metrics(taken.rounds),
            "rounds/outcome/surplus": float(taken.num_surplus),
            "rounds/waiting": float(taken.num_waiting),
            **row_metrics(batch.rows, version=self.step - 1),
            **packing_metrics(batch.packed),
            **report.metrics(),
            **self.curriculum.metrics(),
            **(self.refreshed.metrics() if self.refreshed else {}),
            **spans.seconds(),
            "memory/peak_gib": self.memory.peak_gib,
        }
        metrics |= self.watch.observe(self.step, taken.rounds, metrics)
        if self.sinks is not None:
            self.sinks.write(self.step, metrics)
        spans.write_trace(self.folder.trace)

    def evaluate_once(self, when: str) -> None:
        """Evaluate unless this run has: a resumed run has its "before" from its first start."""
        asked = {(entry["when"], entry["step"]) for entry in self.evaluations()}
        known = any(name == "before" for name, _ in asked) if when == "before" else (when, self.step) in asked
        if self.questions and not known:
            self._evaluate(when)
        if self.suite is not None and not SuiteLog(self.folder).has(when, self.step):
            self._ask_suite(self.suite, when)

    def evaluate_if_due(self) -> None:
        """Also where a run that was killed meanwhile goes on; what it had finished is not asked again."""
        every = self.config.evaluation.every
        if every and self.step and self.step % every == 0:
            self.evaluate_once("during")

    def _ask_suite(self, suite: Suite, when: str) -> None:
        log = SuiteLog(self.folder)
        with spans.span("evaluate", step=self.step):
            asking = suite.ask(self.table, log.samples(when, self.step))
            figures = self.refresh.while_playing(asking, self.step)
        log.add(when, self.step, figures)
        if self.sinks is not None:
            self.sinks.write_aside(self.step, suite_metrics(figures))
        self.console.print(f"suite {when}: {suite_line(figures)}")

    def _evaluate(self, when: str) -> None:
        with spans.span("evaluate", step=self.step):
            result = self.refresh.while_playing(evaluate(self.questions, self.table), self.step)
        entry = {"when": when, "step": self.step, **asdict(result)}
        write_whole(self.folder.evaluations, [json_line(e) for e in [*self.evaluations(), entry]])
        if self.sinks is not None:
            self.sinks.write_aside(self.step, result.metrics())
        self.console.print(f"held-out accuracy {when}: {result.line()}")

    def evaluations(self) -> list[dict]:
        path = self.folder.evaluations
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def save_if_due(self) -> None:
        """Begin a checkpoint where one is due. Raises what the one before raised, as soon as that is known."""
        if self.saving is not None and self.saving.done():
            self.settle_save()
        if self.step % self.config.checkpoint.every == 0 or self.step == self.config.steps:
            with spans.span("save", step=self.step):
                self.settle_save()  # before it is begun: beginning removes what is not whole
                folder = self.checkpoints.begin(self.step)
                SavedState(self.step, self.curriculum.state(), self.collector.state(), self.watch.state()).save(
                    folder, self.config
                )
                self.saving = self.crew.call("save", self.step, self.checkpoints)

    def settle_save(self) -> None:
        """Wait until the last checkpoint begun is whole. Raises what its save raised."""
        self.crew.call("settle")
        self.saving = None

    def summarise(self) -> None:
        summary = summarise(self.folder.metrics, self.evaluations())
        write_json(self.folder.summary, summary)
        self.console.print(summary_table(summary))
        self.console.print(f"run folder: {self.folder.root}")

    def close(self) -> None:
        if self.sinks is not None:
            self.sinks.close()
        self.memory.close()
        self.shut()
        self.background.close()
