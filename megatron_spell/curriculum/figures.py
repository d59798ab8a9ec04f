"""Figures of the rounds that the curriculum took in: what was read, and how hard the questions were."""

from collections.abc import Iterable, Sequence

import numpy as np

from megatron_spell.curriculum.reading import Shelf
from megatron_spell.types.play import Draw, Outcome, Round, TaskName

ANSWERED = (Outcome.USABLE, Outcome.UNSOLVED, Outcome.TRIVIAL)
# Upper ends of the ranges that solve rates are counted in, and what stands for them in the metrics.
SOLVE_RATES = ((0.0, "0"), (0.25, "to_0.25"), (0.5, "to_0.5"), (0.75, "to_0.75"), (1.0 - 1e-9, "below_1"), (1.0, "1"))


def round_figures(rounds: Sequence[Round], shelf: Shelf) -> dict[str, float]:
    """Means and shares over `rounds`; those of solve rates and of usable ones are left out where there was none."""
    draws = [played.draw for played in rounds]
    read = [shelf.tokens(draw.set_id, draw.answer_from, draw.distractors) for draw in draws]
    figures = {
        "curriculum/shown_documents": mean(len(draw.shown) for draw in draws),
        "curriculum/answer_documents": mean(len(draw.answer_from) + len(draw.distractors) for draw in draws),
        "curriculum/with_history_share": mean(bool(draw.examples) for draw in draws),
        "curriculum/read_tokens": mean(read),
        "curriculum/other_sets_share": _share_of_others(draws, read, shelf),
    }
    return figures | _filled(draws, read) | _solve_rates(rounds) | _usable_mix(rounds)


def _share_of_others(draws: Sequence[Draw], read: Sequence[int], shelf: Shelf) -> float:
    others = sum(shelf.tokens(draw.set_id, (), draw.distractors) for draw in draws)
    return others / max(sum(read), 1)


def _filled(draws: Sequence[Draw], read: Sequence[int]) -> dict[str, float]:
    filled = [tokens / draw.budget_tokens for draw, tokens in zip(draws, read) if draw.budget_tokens]
    if not filled:
        return {}
    over = mean(share > 1 for share in filled)
    return {"curriculum/budget_filled_share": mean(filled), "curriculum/over_budget_share": over}


def _solve_rates(rounds: Sequence[Round]) -> dict[str, float]:
    """Shares of the answered rounds by solve rate: each range ends where its name says and begins above the last."""
    rates = [played.solve_rate for played in rounds if played.outcome in ANSWERED]
    if not rates:
        return {}
    which = np.searchsorted([end for end, _ in SOLVE_RATES], rates)
    counts = np.bincount(np.minimum(which, len(SOLVE_RATES) - 1), minlength=len(SOLVE_RATES))
    return {f"curriculum/solve_rates/{name}": float(n / len(rates)) for (_, name), n in zip(SOLVE_RATES, counts)}


def _usable_mix(rounds: Sequence[Round]) -> dict[str, float]:
    usable = [played.draw.task for played in rounds if played.outcome is Outcome.USABLE]
    if not usable:
        return {}
    return {f"curriculum/usable_mix/{task}": usable.count(task) / len(usable) for task in TaskName}


def mean(numbers: Iterable[float]) -> float:
    """0 of nothing."""
    values = list(numbers)
    return float(np.mean(values)) if values else 0.0
