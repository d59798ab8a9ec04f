"""Several engines as one."""

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np

from megatron_spell.rollout.engine import Engine, EngineError, EngineUnusable, Part, SamplingSpec
from megatron_spell.types.play import Completion

T = TypeVar("T")

MAX_KEYS = 4096  # homes remembered; the caches of older ones are long overwritten


class EnginePool:
    """Sends the requests of one key to one engine, where its prefix is cached, and shares keys and the rest evenly.

    Load is counted in samples under way. A key leaves its engine for the least loaded one when it has more than
    `max_imbalance` samples more. Weight updates go to all engines at once; when one fails, the pool is unusable, for
    its engines may hold different versions.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        max_imbalance: int = 64,
        workers_per_engine: int = 1,
        name: str = "engines",
    ) -> None:
        if not engines:
            raise EngineError("a pool needs at least one engine")
        self.name = name
        self._engines = tuple(engines)
        self._loads = [0] * len(engines)
        self._homes: OrderedDict[str, int] = OrderedDict()
        self._max_imbalance = max_imbalance
        self._workers_per_engine = workers_per_engine
        self._broken: str | None = None

    @property
    def loads(self) -> tuple[int, ...]:
        """Samples under way, by engine."""
        return tuple(self._loads)

    async def generate(
        self, prompt_ids_T: np.ndarray, spec: SamplingSpec, *, key: str | None = None
    ) -> list[Completion]:
        self._check()
        chosen = self._choose(key)
        self._loads[chosen] += spec.n
        try:
            return await self._engines[chosen].generate(prompt_ids_T, spec, key=key)
        finally:
            self._loads[chosen] -= spec.n

    async def connect(self, channel: dict) -> None:
        """`channel["rank"]` is the bridge rank of the first engine's first worker; the others follow."""
        ranks = [channel["rank"] + i * self._workers_per_engine for i in range(len(self._engines))]
        await self._all([engine.connect({**channel, "rank": rank}) for engine, rank in zip(self._engines, ranks)])

    async def begin_update(self) -> None:
        await self._all([engine.begin_update() for engine in self._engines])

    async def receive_weights(self, request: dict) -> None:
        await self._all([engine.receive_weights(request) for engine in self._engines])

    async def finish_update(self, version: int) -> None:
        await self._all([engine.finish_update(version) for engine in self._engines])

    async def sleep(self) -> str | None:
        """The first reason of an engine that gave nothing back, None when all did."""
        reasons = await self._all([engine.sleep() for engine in self._engines])
        return next((reason for reason in reasons if reason is not None), None)

    async def wake(self, part: Part) -> None:
        await self._all([engine.wake(part) for engine in self._engines])

    async def close(self) -> None:
        """Close every engine, also when closing one fails; then the first failure is raised."""
        self._broken = self._broken or "it was closed"
        await _gather([engine.close() for engine in self._engines])

    def _choose(self, key: str | None) -> int:
        least = min(range(len(self._loads)), key=lambda i: (self._loads[i], i))
        if key is None:
            return least
        home = self._homes.get(key, least)
        if self._loads[home] - self._loads[least] > self._max_imbalance:
            home = least
        self._homes[key] = home
        self._homes.move_to_end(key)
        if len(self._homes) > MAX_KEYS:
            self._homes.popitem(last=False)
        return home

    async def _all(self, steps: list[Coroutine[Any, Any, T]]) -> list[T]:
        try:
            self._check()
            return await _gather(steps)
        except BaseException as error:
            for step in steps:
                step.close()
            self._broken = self._broken or f"a weight update failed: {error}"
            raise

    def _check(self) -> None:
        if self._broken is not None:
            raise EngineUnusable(f"{self.name} are unusable: {self._broken}")


async def _gather(steps: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all to their end, then raise the first failure: none is left running on its own."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
