"""Several engines as one."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from megatron_spell.rollout.engine import (
    Engine,
    EngineDied,
    EngineError,
    EngineTimeout,
    EngineUnusable,
    SamplingSpec,
)
from megatron_spell.rollout.turnstile import unless
from megatron_spell.types.play import Completion

MAX_KEYS = 4096  # homes remembered; the caches of older ones are long overwritten
MAX_TRIES = 3  # engines that one request may see die: what kills every engine must not be given to all of them

OnLoss = Callable[[int, Engine, str], None]


@dataclass(slots=True, eq=False)
class _Seat:
    """A live engine; `load` is the number of samples under way on it."""

    number: int
    engine: Engine
    load: int = 0
    why: str = ""
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_lost(self) -> NoReturn:
        """Raises EngineDied as soon as the engine is lost: one that hangs would not say so itself."""
        await self.lost.wait()
        raise EngineDied(self.why)


class EnginePool:
    """Sends the requests of one key to one engine, where its prefix is cached, and shares keys and the rest evenly.

    Load is counted in samples under way. A key leaves its engine for the least loaded one when it has more than
    `max_imbalance` samples more. Engines have numbers, from 0 in the order given. One that dies, is unusable or does
    not answer in time is lost: `on_loss(number, engine, why)` hears of it, and its requests go to another, where their
    seeds give the same completions. When none is live, requests wait for one to join; `hope_s` says how many seconds
    from the last change on, 0 where there is no hope. Weights are brought to the single engines, not to the pool. One
    event loop only.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        max_imbalance: int = 64,
        name: str = "engines",
        on_loss: OnLoss = lambda number, engine, why: None,
        hope_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        if not engines:
            raise EngineError("a pool needs at least one engine")
        self.name = name
        self._seats = {number: _Seat(number, engine) for number, engine in enumerate(engines)}
        self._homes: OrderedDict[str, int] = OrderedDict()
        self._max_imbalance = max_imbalance
        self._on_loss, self._hope_s = on_loss, hope_s
        self._changed = asyncio.Event()
        self._losses: list[str] = []
        self._closed = False

    @property
    def live(self) -> dict[int, Engine]:
        """The engines that get requests, by number."""
        return {number: seat.engine for number, seat in sorted(self._seats.items())}

    @property
    def loads(self) -> dict[int, int]:
        """Samples under way, by number of a live engine."""
        return {number: seat.load for number, seat in sorted(self._seats.items())}

    def lose(self, number: int, why: str) -> None:
        """Give this engine no more requests; those under way on it go to another. Nothing where it gets none."""
        seat = self._seats.pop(number, None)
        if seat is not None:
            self._losses.append(why)
            seat.why = why
            seat.lost.set()
            self._on_loss(number, seat.engine, why)

    def join(self, number: int, engine: Engine) -> None:
        """Give this engine requests from now on; it must hold the weights that the others hold."""
        if number in self._seats:
            raise EngineError(f"{self.name}: number {number} is taken by {self._seats[number].engine.name}")
        self._seats[number] = _Seat(number, engine)
        self.look_again()

    def look_again(self) -> None:
        """Have requests that wait for an engine see whether there is one, or still hope."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def generate(
        self, prompt_ids_T: np.ndarray, spec: SamplingSpec, *, key: str | None = None
    ) -> list[Completion]:
        """As an engine's. Raises EngineDied naming the reasons when no engine is left, or `MAX_TRIES` were lost."""
        for _ in range(MAX_TRIES):
            await self._somebody()
            seat = self._choose(key)
            seat.load += spec.n
            try:
                return await unless(seat.until_lost(), seat.engine.generate(prompt_ids_T, spec, key=key))
            except (EngineDied, EngineUnusable, EngineTimeout) as error:
                why = str(error)
            finally:
                seat.load -= spec.n
            if self._seats.get(seat.number) is seat:
                self.lose(seat.number, why)
        raise EngineDied(f"a prompt of {len(prompt_ids_T)} tokens was lost with {MAX_TRIES} engines: {why}")

    async def close(self) -> None:
        """Close every live engine, also when closing one fails; then the first failure is raised."""
        self._closed = True
        self.look_again()
        seats, self._seats = self._seats, {}
        results = await asyncio.gather(*(s.engine.close() for s in seats.values()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _somebody(self) -> None:
        """Return with at least one engine live."""
        while not self._seats and not self._closed and (hope_s := self._hope_s()) > 0:
            try:
                async with asyncio.timeout(None if math.isinf(hope_s) else hope_s):
                    await self._changed.wait()
            except TimeoutError:
                self._losses.append(f"waited {hope_s:g} s for one to be started again")
                break
        if self._closed:
            raise EngineUnusable(f"{self.name} are unusable: they were closed")
        if not self._seats:
            raise EngineDied(f"no engine is left of {self.name}: {'; '.join(self._losses[-4:])}")

    def _choose(self, key: str | None) -> _Seat:
        least = min(self._seats.values(), key=lambda seat: (seat.load, seat.number))
        if key is None:
            return least
        home = self._seats.get(self._homes.get(key, least.number), least)
        if home.load - least.load > self._max_imbalance:
            home = least
        self._homes[key] = home.number
        self._homes.move_to_end(key)
        if len(self._homes) > MAX_KEYS:
            self._homes.popitem(last=False)
        return home
