"""What finished runs came to, read from their folders."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from intervals import Estimate, over_seeds, over_seeds_and_questions
from plan import PlannedRun

CURVES = ("curriculum/document_tokens", "responder/solve_rate/mean", "policy/entropy/mean", "rounds/usable_share")
TO_LENGTH = "accuracy to tokens/"  # before the upper bound of a length
ATTEMPTS = "attempts.jsonl"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One asking of the held-out questions; what an older run did not write is empty or None."""

    step: int
    accuracy: float
    pass_at_all: float
    num_samples: int
    by_task: dict[str, float]
    by_length: dict[str, float]  # by the upper bound of document tokens
    longest_usable_tokens: float | None
    asked: str | None  # the same for the same questions
    num_right: tuple[int, ...] | None  # of each question

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Evaluated":
        """From a line of evaluations.jsonl."""
        length, right = entry.get("usable_length"), entry.get("num_right")
        return cls(
            step=entry["step"],
            accuracy=entry["overall"]["mean"],
            pass_at_all=entry["pass_at_all"],
            num_samples=entry["num_samples"],
            by_task={task: found["mean"] for task, found in entry["by_task"].items()},
            by_length={str(tokens): found["mean"] for tokens, found in entry.get("by_length", {}).items()},
            longest_usable_tokens=None if length is None else length["tokens"],
            asked=entry.get("asked"),
            num_right=None if right is None else tuple(right),
        )


@dataclass(frozen=True, slots=True)
class RunResult:
    """`curves` holds (step, value) by name; `minutes` is None when not all of it is known.

    `signs` counts the steps that showed a sign of collapse (docs/debugging.md), by sign.
    """

    variant: str
    seed: int
    steps: int
    minutes: float | None
    before: Evaluated
    after: Evaluated
    curves: dict[str, list[tuple[int, float]]]
    signs: dict[str, int]

    @property
    def gain(self) -> float:
        return self.after.accuracy - self.before.accuracy

    @property
    def pass_change(self) -> float:
        return self.after.pass_at_all - self.before.pass_at_all

    def record(self) -> dict[str, Any]:
        """For results.jsonl."""
        return {"gain": self.gain, "pass_at_all_change": self.pass_change} | asdict(self)


def collect(runs: Iterable[PlannedRun]) -> list[RunResult]:
    """Of those that are finished and were evaluated."""
    found = (_result(run) for run in runs if run.finished)
    return [result for result in found if result is not None]


def _result(run: PlannedRun) -> RunResult | None:
    evaluations = _lines(run.folder / "evaluations.jsonl")
    asked = [Evaluated.of(entry) for entry in evaluations]
    by_time = {entry["when"]: evaluated for entry, evaluated in zip(evaluations, asked)}
    if not {"before", "after"} <= by_time.keys():
        return None
    steps = _lines(run.folder / "metrics.jsonl")
    curves = evaluated_curves(asked) | {name: _curve(steps, name) for name in CURVES}
    before, after = by_time["before"], by_time["after"]
    told = json.loads((run.folder / "summary.json").read_text(encoding="utf-8")).get("steps_of_signs", {})
    signs = {sign: count for sign, count in told.items() if count}
    return RunResult(run.variant, run.seed, after.step, minutes(run.folder), before, after, curves, signs)


def evaluated_curves(evaluations: Sequence[Evaluated]) -> dict[str, list[tuple[int, float]]]:
    """Over steps: accuracy, pass@k, longest usable length, and accuracy up to each length; what there is of them."""
    curves: dict[str, dict[int, float]] = {"accuracy": {}, "pass_at_all": {}, "longest_usable_tokens": {}}
    for evaluated in evaluations:  # the last step may have been asked twice; the answers are the same
        curves["accuracy"][evaluated.step] = evaluated.accuracy
        curves["pass_at_all"][evaluated.step] = evaluated.pass_at_all
        if evaluated.longest_usable_tokens is not None:
            curves["longest_usable_tokens"][evaluated.step] = evaluated.longest_usable_tokens
        for tokens, mean in evaluated.by_length.items():
            curves.setdefault(f"{TO_LENGTH}{tokens}", {})[evaluated.step] = mean
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def _curve(steps: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(step["step"], step[name]) for step in steps if step.get(name) is not None]


def minutes(folder: Path) -> float | None:
    """Wall time of all attempts at a run; None when one of them was killed before it could note its end."""
    attempts = _lines(folder / ATTEMPTS)
    if not attempts or any(attempt["seconds"] is None for attempt in attempts):
        return None
    return sum(attempt["seconds"] for attempt in attempts) / 60


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gains_by_question(results: Sequence[RunResult]) -> np.ndarray | None:
    """Shares of right samples after less before, [seeds, questions]; None where runs did not ask the same."""
    asked = {e.asked for r in results for e in (r.before, r.after)}
    if not results or len(asked) != 1 or None in asked:
        return None
    after, before = ([_shares(e) for e in column] for column in zip(*((r.after, r.before) for r in results)))
    return np.array(after) - np.array(before)


def _shares(evaluated: Evaluated) -> list[float]:
    return [right / evaluated.num_samples for right in evaluated.num_right or ()]


def mean_gain(results: Sequence[RunResult]) -> Estimate:
    """Over seeds and questions where every question's answers are known, else over seeds alone."""
    gains = gains_by_question(results)
    return over_seeds(np.array([r.gain for r in results])) if gains is None else over_seeds_and_questions(gains)


def gain_beside(results: Sequence[RunResult], base: Sequence[RunResult]) -> Estimate | None:
    """The gain less that of the base variant, paired by seed and question; None when they share no seed."""
    of_base = {result.seed: result for result in base}
    mine = [result for result in results if result.seed in of_base]
    theirs = [of_base[result.seed] for result in mine]
    if not mine:
        return None
    both = gains_by_question([*mine, *theirs])
    if both is None:
        return over_seeds(np.array([m.gain - t.gain for m, t in zip(mine, theirs)]))
    return over_seeds_and_questions(both[: len(mine)] - both[len(mine) :])
