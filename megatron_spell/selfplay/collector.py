"""Keeps rounds in flight until a step has its questions; takes them in the order of their draws.

Taking by draw order and not by arrival makes a step a function of seed, weights and curriculum alone: however the
engines were scheduled, and whether or not the run was interrupted, the same rounds are trained on.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from megatron_spell.config.schema import PlaySection
from megatron_spell.curriculum.curriculum import Curriculum
from megatron_spell.selfplay.round import play_round
from megatron_spell.selfplay.table import Table
from megatron_spell.types.play import Outcome, Round


class NotEnoughQuestions(ValueError):
    """A step found fewer usable questions than `play.min_questions` within its draws."""


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """The rounds of one step, in draw order; those after them were begun in vain and are played anew later."""

    rounds: tuple[Round, ...]
    num_surplus: int

    @property
    def usable(self) -> tuple[Round, ...]:
        return tuple(r for r in self.rounds if r.outcome == Outcome.USABLE)


class Collector:
    def __init__(self, table: Table, curriculum: Curriculum, play: PlaySection):
        self._table, self._curriculum, self._play = table, curriculum, play
        self._next_draw = 0
        self._usable_share = 0.5  # moving estimate, for how many rounds to begin ahead

    async def take(self, round_ended: Callable[[Outcome, int], None] = lambda outcome, in_flight: None) -> Taken:
        """Play until `questions_per_step` usable rounds stand in a row of draws, or the step's draws are used up.

        `round_ended` hears of every round taken, with the number still being played. Raises NotEnoughQuestions, and
        what the engine raises; then nothing is left running.
        """
        window = _Window(self._begin, self._next_draw, self._play.max_draws_per_step)
        rounds: list[Round] = []
        usable = 0
        try:
            while usable < self._play.questions_per_step and window.has_next(self._ahead(usable)):
                played = await window.next(self._ahead(usable))
                rounds.append(played)
                usable += played.outcome == Outcome.USABLE
                self._usable_share += 0.05 * ((played.outcome == Outcome.USABLE) - self._usable_share)
                round_ended(played.outcome, window.num_running)
        finally:
            num_surplus = await window.cancel()
        if usable < self._play.min_questions:
            raise NotEnoughQuestions(self._shortage(rounds, usable))
        self._next_draw += len(rounds)
        return Taken(tuple(rounds), num_surplus)

    def _begin(self, index: int) -> asyncio.Task[Round]:
        return asyncio.create_task(play_round(self._curriculum.draw(index), self._table), name=f"round {index}")

    def _ahead(self, usable: int) -> int:
        """How many rounds to keep begun: what the missing questions will likely take, within the bound."""
        missing = self._play.questions_per_step - usable
        return min(self._play.max_rounds_in_flight, max(1, math.ceil(missing / max(self._usable_share, 0.05))))

    def _shortage(self, rounds: list[Round], usable: int) -> str:
        ended = {outcome: sum(r.outcome == outcome for r in rounds) for outcome in Outcome}
        how = ", ".join(f"{count} {outcome}" for outcome, count in ended.items() if count)
        return (
            f"play.min_questions = {self._play.min_questions}: only {usable} of {len(rounds)} rounds were usable"
            f" ({how}); raise play.max_draws_per_step, lower play.min_questions, or begin from a better model"
        )

    def state(self) -> dict:
        return {"next_draw": self._next_draw, "usable_share": self._usable_share}

    def load_state(self, state: dict) -> None:
        self._next_draw, self._usable_share = int(state["next_draw"]), float(state["usable_share"])


class _Window:
    """Rounds begun ahead of the one that is taken next."""

    def __init__(self, begin: Callable[[int], asyncio.Task[Round]], first: int, limit: int):
        self._begin, self._next, self._stop = begin, first, first + limit
        self._tasks: list[asyncio.Task[Round]] = []

    def has_next(self, ahead: int) -> bool:
        self._fill(ahead)
        return bool(self._tasks)

    async def next(self, ahead: int) -> Round:
        """The round of the lowest draw not yet taken. While it plays, rounds that end make room for later ones."""
        while not self._tasks[0].done():
            self._fill(ahead)
            await asyncio.wait(self._running(), return_when=asyncio.FIRST_COMPLETED)
        return self._tasks.pop(0).result()

    @property
    def num_running(self) -> int:
        return len(self._running())

    def _running(self) -> list[asyncio.Task[Round]]:
        return [task for task in self._tasks if not task.done()]

    def _fill(self, ahead: int) -> None:
        # Ended rounds behind a slow one are bounded as well: what is never taken was played for nothing.
        while len(self._running()) < ahead and len(self._tasks) < 2 * ahead and self._next < self._stop:
            self._tasks.append(self._begin(self._next))
            self._next += 1

    async def cancel(self) -> int:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        return len(self._tasks)
