"""Signs of collapse in a run under way: measured over its rounds, told on the console, and a reason to stop."""

from collections.abc import Callable, Mapping, Sequence

from megatron_spell.config.schema import RunConfig
from megatron_spell.curriculum.repeats import AskedQuestions
from megatron_spell.observe.watch import Warned, Watch
from megatron_spell.types.play import Round


class Collapsed(ValueError):
    """A sign of collapse whose action is `stop` has shown for `watch.patience` steps in a row."""


class CollapseWatch:
    """`tell` gets a line when a sign has shown for long enough, and one when it is gone again."""

    def __init__(self, config: RunConfig, tell: Callable[[str], None]) -> None:
        self._actions = config.watch.actions
        self._watch = Watch(config.watch, config.algo.train_roles)
        self._asked = AskedQuestions(config.watch.remembered_questions, config.curriculum.duplicate_similarity)
        self._tell = tell
        self._standing: dict[str, Warned] = {}

    def observe(self, step: int, rounds: Sequence[Round], metrics: Mapping[str, float]) -> dict[str, float]:
        """Take in the rounds and metrics of `step`, once a step; what is to be added to the metrics."""
        repeats = self._asked.observe(rounds)
        told_before = {key for key, told in self._watch.metrics().items() if told}
        self._standing = {warned.key: warned for warned in self._watch.look({**metrics, **repeats})}
        figures = self._watch.metrics()
        for key, warned in self._standing.items():
            if f"watch/{key}" not in told_before:
                self._tell(f"warning after step {step}: {warned.line} (docs/debugging.md, Signs of collapse)")
        for key in sorted(told_before - {key for key, told in figures.items() if told}):
            self._tell(f"after step {step}: {key.removeprefix('watch/')} is back within its limit")
        return {**repeats, **figures}

    def stop_if_collapsed(self) -> None:
        """Raises Collapsed when a sign stands whose action is `stop`."""
        for warned in self._standing.values():
            if self._actions.get(warned.sign) == "stop":
                raise Collapsed(
                    f"{warned.line}; watch.actions.{warned.sign} = stop ends the run; checkpoints are kept, set it to"
                    " warn to go on"
                )

    def state(self) -> dict:
        """JSON-able."""
        return {"signs": self._watch.state(), "asked": self._asked.state()}

    def load_state(self, state: Mapping) -> None:
        """Raises ObserveError or CurriculumError for a malformed state; an empty one, of an older run, begins anew."""
        self._watch.load_state(state.get("signs", {}))
        self._asked.load_state(state.get("asked", ()))
