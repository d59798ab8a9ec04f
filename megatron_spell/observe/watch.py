"""Signs of collapse, read off a step's metrics: what is beyond its limit, for how many steps in a row.

Nothing is measured here: a sign is a metric, a limit from the `watch` section, and words of advice. So a finished run's
metrics.jsonl can be read again with other limits.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from megatron_spell.config.schema import WatchSection
from megatron_spell.observe.errors import ObserveError
from megatron_spell.types.play import Role
from megatron_spell.types.signs import Sign

WRITERS = (Role.QUESTIONER, Role.RESPONDER)  # a verifier that is sure of its votes has little entropy by right


@dataclass(frozen=True, slots=True)
class Rule:
    """A sign shows in a step when `metric` is beyond `watch.<limit>`, or not finite.

    The limit is a ratio to the mean of the first steps where `is_ratio`. `{role}` in `metric` stands for each of
    `roles`, which are watched each by itself; with `trained_only` those that the run trains.
    """

    sign: Sign
    metric: str
    limit: str
    advice: str
    roles: tuple[Role, ...] = ()
    above: bool = False
    is_ratio: bool = False
    trained_only: bool = False


RULES = (
    Rule(
        Sign.ENTROPY_LOW,
        "{role}/surprisal/mean",
        "min_surprisal",
        "the policy hardly explores any more: lower policy.optimizer.lr, raise sampling.temperature",
        WRITERS,
    ),
    Rule(
        Sign.ENTROPY_FELL,
        "{role}/surprisal/mean",
        "min_surprisal_ratio",
        "exploration is going: lower policy.optimizer.lr, raise sampling.temperature",
        WRITERS,
        is_ratio=True,
    ),
    Rule(
        Sign.ENTROPY_HIGH,
        "{role}/surprisal/mean",
        "max_surprisal",
        "it writes noise: go on from an earlier checkpoint with a lower policy.optimizer.lr",
        tuple(Role),
        above=True,
    ),
    Rule(
        Sign.OUTPUT_SHORT,
        "{role}/output_tokens/mean",
        "min_output_ratio",
        "outputs shrink to fragments: read rounds/ for what short outputs earn",
        tuple(Role),
        is_ratio=True,
    ),
    Rule(
        Sign.OUTPUT_UNFINISHED,
        "{role}/unfinished/share",
        "max_unfinished_share",
        "outputs are cut off: raise sampling.max_tokens, or read rounds/ for repetition without end",
        tuple(Role),
        above=True,
    ),
    Rule(
        Sign.ALWAYS_YES,
        "verifier/yes/share",
        "max_yes_share",
        "the verifier says yes always: do not train it (algo.train_roles), or go on from an earlier checkpoint",
        above=True,
    ),
    Rule(
        Sign.ALWAYS_NO,
        "verifier/yes_on_accepted/share",
        "min_yes_on_accepted",
        "the verifier refuses right answers: raise play.judge_right_share",
    ),
    Rule(
        Sign.YES_AGAINST_RULE,
        "verifier/yes_on_refused/share",
        "max_yes_on_refused",
        "wrong answers are voted right: read rounds/ for who is mistaken, verifier or rule",
        above=True,
    ),
    Rule(
        Sign.REPEATED_QUESTIONS,
        "questioner/repeated/share",
        "max_repeated_share",
        "the questioner repeats itself: raise curriculum.memory_size, add documents",
        above=True,
    ),
    Rule(
        Sign.SAME_QUESTION_EVERYWHERE,
        "questioner/repeated_elsewhere/share",
        "max_repeated_elsewhere_share",
        "one question is asked of all documents: raise play.ground_samples, read rounds/ for why it is rewarded",
        above=True,
    ),
    Rule(
        Sign.REWARD_AGAINST_RULE,
        "responder/reward_against_rule/share",
        "max_reward_against_rule",
        "most reward comes from votes alone: read rounds/ for answers that please the verifier and are wrong",
        above=True,
    ),
    Rule(
        Sign.USABLE_FELL,
        "rounds/usable_share",
        "min_usable_ratio",
        "rounds end unusable: rounds/outcome/... says how",
        is_ratio=True,
    ),
    Rule(
        Sign.NO_SIGNAL,
        "{role}/rows",
        "min_rows",
        "its groups are unanimous or empty: read rounds/, or leave it out of algo.train_roles",
        tuple(Role),
        trained_only=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Warned:
    """A sign that has shown for `watch.patience` steps in a row; `line` names figure, limit and what to do."""

    sign: Sign
    key: str  # the metric it is written under, without "watch/"
    line: str


class Watch:
    """Counts the steps in a row that each sign shows; give it the metrics of every step once, in their order.

    A step without the figure (a role that said nothing) changes nothing. A step within the limit clears the sign.
    """

    def __init__(self, settings: WatchSection, train_roles: Collection[Role]) -> None:
        self._settings = settings
        self._watched = tuple(_watched(settings, train_roles))
        self._in_a_row: dict[str, int] = {}
        self._first: dict[str, list[float]] = {}

    def look(self, metrics: Mapping[str, float]) -> list[Warned]:
        """Take in one step; the signs that have now shown for long enough, in this step too."""
        standing = []
        for rule, metric, key in self._watched:
            value = metrics.get(metric)
            if value is None:
                continue
            limit = self._limit(rule, metric)
            if limit is None:
                continue
            shows = not (value <= limit if rule.above else value >= limit)  # NaN is beyond every limit
            self._in_a_row[key] = self._in_a_row.get(key, 0) + 1 if shows else 0
            if self._in_a_row[key] >= self._settings.patience:
                standing.append(Warned(rule.sign, key, self._line(rule, metric, key, value, limit)))
        self._learn_first(metrics)
        return standing

    def steps_in_a_row(self) -> dict[str, int]:
        """Of every sign that is not switched off, by key."""
        return {key: self._in_a_row.get(key, 0) for _, _, key in self._watched}

    def metrics(self) -> dict[str, float]:
        """`watch/<key>`: 1 while the sign is told, else 0."""
        counts = self.steps_in_a_row()
        return {f"watch/{key}": float(count >= self._settings.patience) for key, count in counts.items()}

    def _limit(self, rule: Rule, metric: str) -> float | None:
        """None while the first steps are still being measured."""
        limit = getattr(self._settings, rule.limit)
        if not rule.is_ratio:
            return limit
        first = self._first.get(metric, [])
        return limit * sum(first) / len(first) if len(first) == self._settings.first_steps else None

    def _learn_first(self, metrics: Mapping[str, float]) -> None:
        for metric in {metric for rule, metric, _ in self._watched if rule.is_ratio}:
            value, first = metrics.get(metric), self._first.setdefault(metric, [])
            if value is not None and math.isfinite(value) and len(first) < self._settings.first_steps:
                first.append(float(value))

    def _line(self, rule: Rule, metric: str, key: str, value: float, limit: float) -> str:
        side = "above" if rule.above else "under"
        setting = f"watch.{rule.limit} = {getattr(self._settings, rule.limit):g}"
        of = f"{limit:.4g}, {setting} of its first {self._settings.first_steps} steps" if rule.is_ratio else setting
        steps = f"{self._in_a_row[key]} step{'s in a row' if self._in_a_row[key] > 1 else ''}"
        return f"{key}: {metric} = {value:.4g} is {side} {of}, for {steps}; {rule.advice}"

    def state(self) -> dict:
        """JSON-able; `load_state` of it goes on as if nothing had come between."""
        return {"in_a_row": dict(self._in_a_row), "first": {metric: list(v) for metric, v in self._first.items()}}

    def load_state(self, state: Mapping) -> None:
        """Raises ObserveError for a malformed state. An empty one begins anew."""
        try:
            in_a_row = {str(key): int(count) for key, count in state.get("in_a_row", {}).items()}
            first = {str(metric): [float(v) for v in values] for metric, values in state.get("first", {}).items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ObserveError(f"saved watch: is malformed ({error!r}); start a new run") from None
        limit = self._settings.first_steps
        self._in_a_row, self._first = in_a_row, {metric: values[:limit] for metric, values in first.items()}


def _watched(settings: WatchSection, train_roles: Collection[Role]) -> Iterator[tuple[Rule, str, str]]:
    """(rule, metric, key) for every sign that is on and every role it is watched in."""
    for rule in RULES:
        if settings.actions.get(rule.sign) == "off":
            continue
        if not rule.roles:
            yield rule, rule.metric, rule.sign.value
        for role in rule.roles:
            if role in train_roles or not rule.trained_only:
                yield rule, rule.metric.format(role=role), f"{rule.sign}/{role}"
