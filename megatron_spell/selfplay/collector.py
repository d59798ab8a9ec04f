"""Keeps rounds in flight until a step has its questions; takes them in the order of their draws.

Taking by draw order and not by arrival keeps what is trained on free of a preference for short rounds. On-policy
(`algo.max_staleness` 0) it also makes a step a function of seed, weights and curriculum alone: however the engines were
scheduled, and whether or not the run was interrupted, the same rounds are trained on (docs/decisions/001, 010).
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from megatron_spell.config.schema import PlaySection
from megatron_spell.selfplay.round import play_round
from megatron_spell.selfplay.table import Table
from megatron_spell.types.play import Draw, Outcome, Round

LEAST_USABLE_SHARE = 0.05  # assumed at least, or a bad start would begin rounds without end


class NotEnoughQuestions(ValueError):
    """A step found fewer usable questions than `play.min_questions` within its draws."""


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """The rounds of one step, in draw order.

    `num_waiting` later rounds are under way or have ended for the next steps; `num_surplus` were begun in vain, and
    their draws are played anew later.
    """

    rounds: tuple[Round, ...]
    num_surplus: int = 0
    num_waiting: int = 0

    @property
    def usable(self) -> tuple[Round, ...]:
        return tuple(r for r in self.rounds if r.outcome == Outcome.USABLE)


class Collector:
    """Plays the draws 0, 1, 2, ... and hands each round out once.

    With `algo.max_staleness` k > 0 rounds go on between two takes, for at most k steps ahead; what is trained on is
    never older than k versions (Outcome.STALE takes what would be). With k = 0 nothing is begun beyond the step, and
    what is left of it is aborted. All calls on one event loop.
    """

    def __init__(self, table: Table, draw: Callable[[int], Draw], play: PlaySection, max_staleness: int = 0):
        self._table, self._draw = table, draw
        self._play, self._max_staleness = play, max_staleness
        self._begun: deque[asyncio.Task[Round]] = deque()  # not taken yet, in the order of their draws
        self._next_draw = 0  # of the first of them
        self._limit = 0  # this draw and later ones are not begun
        self._wanted = self._wanted_later = 0  # usable rounds that those begun should bring: this step's, all others'
        self._usable_share = 0.5  # moving estimate, for how many rounds to begin ahead

    async def take(
        self,
        version: int,
        num_later_steps: int = 0,
        round_ended: Callable[[Outcome, int], None] = lambda outcome, in_flight: None,
    ) -> Taken:
        """Play until `questions_per_step` usable rounds stand in a row of draws, or the step's draws are used up.

        `version` is the policy's that will be trained with them; `num_later_steps` follow this one. `round_ended` hears
        of every round taken, with the number still being played. Raises NotEnoughQuestions, and what the engine
        raises; then nothing is left running.
        """
        quota, num_ahead = self._play.questions_per_step, min(self._max_staleness, num_later_steps)
        self._limit = self._next_draw + (1 + num_ahead) * self._play.max_draws_per_step
        rounds: list[Round] = []
        missing = quota
        try:
            while missing and len(rounds) < self._play.max_draws_per_step:
                self._want(missing, num_ahead * quota)
                rounds.append(await self._next(version))
                missing -= rounds[-1].outcome == Outcome.USABLE
                round_ended(rounds[-1].outcome, self.num_running)
            if quota - missing < self._play.min_questions:
                raise NotEnoughQuestions(self._shortage(rounds, quota - missing))
        except BaseException:
            await self.stop()
            raise
        num_surplus = 0 if num_ahead else await self.stop()
        self._want(0, num_ahead * quota)
        return Taken(tuple(rounds), num_surplus, len(self._begun))

    async def stop(self) -> int:
        """Abort every round not taken yet; their number. Their draws come first when something is taken again."""
        self._wanted = self._wanted_later = 0
        stopped, self._begun = self._begun, deque()
        for task in stopped:
            task.cancel()
        for task in stopped:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        return len(stopped)

    @property
    def num_running(self) -> int:
        return sum(not task.done() for task in self._begun)

    def state(self) -> dict:
        """JSON-able. Rounds not taken yet are not in it: whoever loads it plays their draws again."""
        return {"next_draw": self._next_draw, "usable_share": self._usable_share}

    def load_state(self, state: dict) -> None:
        self._next_draw, self._usable_share = int(state["next_draw"]), float(state["usable_share"])

    async def _next(self, version: int) -> Round:
        """The round of the lowest draw not yet taken, fresh or as Outcome.STALE."""
        played = await self._begun[0]
        self._begun.popleft()
        self._next_draw += 1
        self._usable_share += 0.05 * ((played.outcome == Outcome.USABLE) - self._usable_share)
        oldest = played.oldest_version
        is_stale = oldest is not None and version - oldest > self._max_staleness
        return replace(played, outcome=Outcome.STALE) if is_stale else played

    def _want(self, now: int, later: int) -> None:
        self._wanted, self._wanted_later = now, later
        self._fill()

    def _fill(self) -> None:
        while self._needs_more():
            index = self._next_draw + len(self._begun)
            task = asyncio.create_task(play_round(self._draw(index), self._table), name=f"round {index}")
            self._begun.append(task)
            task.add_done_callback(lambda _: self._fill())

    def _needs_more(self) -> bool:
        """Whether the rounds begun may well bring fewer usable ones than wanted.

        By one standard deviation: this step is to be filled, and what is played for later ones is not to grow stale.
        """
        ended = [task for task in self._begun if task.done()]
        if any(task.cancelled() or task.exception() for task in ended):
            return False  # that is raised when its turn comes; to begin more would only repeat it
        num_running = len(self._begun) - len(ended)
        if num_running >= self._play.max_rounds_in_flight or self._next_draw + len(self._begun) >= self._limit:
            return False
        share = max(self._usable_share, LEAST_USABLE_SHARE)
        expected = num_running * share + sum(task.result().outcome == Outcome.USABLE for task in ended)
        spread = math.sqrt(num_running * share * (1 - share))
        is_short = self._wanted > 0 and expected - spread < self._wanted
        return is_short or expected + spread < self._wanted + self._wanted_later

    def _shortage(self, rounds: list[Round], num_usable: int) -> str:
        ended = {outcome: sum(r.outcome == outcome for r in rounds) for outcome in Outcome}
        how = ", ".join(f"{count} {outcome}" for outcome, count in ended.items() if count)
        return (
            f"play.min_questions = {self._play.min_questions}: only {num_usable} of {len(rounds)} rounds were usable"
            f" ({how}); raise play.max_draws_per_step, lower play.min_questions, or begin from a better model"
        )
