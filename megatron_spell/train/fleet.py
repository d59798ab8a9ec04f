"""The engines of a run by their numbers: those that serve, those that are being started again, those given up."""

import asyncio
import contextlib
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from megatron_spell.cluster.handles import ClusterError
from megatron_spell.rollout.engine import Engine, EngineDied, EngineError
from megatron_spell.rollout.router import EnginePool
from megatron_spell.train.heartbeat import until_silent

CLOSE_S = 60.0  # longest wait for a lost engine's processes to end


class Fleet:
    """Starts lost engines again, each `max_restarts` times at most, and knows who can be given weights.

    `pool` holds the engines that serve. One that was started again is *back*, but serves only once `admit` says that it
    holds the policy's weights. `start(number)` starts an engine, which is waited for no longer than `start_timeout_s`;
    one that gives no sign of life for `stall_timeout_s` is lost (None: nobody looks). `tell(line)` is for people. One
    event loop only.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        start: Callable[[int], Awaitable[Engine]],
        *,
        max_restarts: int,
        start_timeout_s: float,
        stall_timeout_s: float | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._wait_s = start_timeout_s + CLOSE_S  # the start's own limit comes first
        self.pool = EnginePool(engines, on_loss=self._part_with, hope_s=self._hope_s)
        self._start, self._max_restarts, self._tell = start, max_restarts, tell
        self._restarts: dict[int, int] = defaultdict(int)
        self._reasons: dict[int, str] = {}  # the last of each number
        self._back: dict[int, Engine] = {}
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._stall_timeout_s = stall_timeout_s
        self._watches: dict[int, asyncio.Task[None]] = {}
        for number, engine in self.pool.live.items():
            self._watch(number, engine)

    async def present(self) -> dict[int, Engine]:
        """The engines that can be given weights, by number: those that serve and those that are back."""
        return dict(sorted({**self.pool.live, **self._back}.items()))

    async def awaits_weights(self) -> bool:
        """Whether nobody serves, and somebody would if it had the weights."""
        return bool(self._back) and not self.pool.live

    async def lose(self, number: int, engine: Engine, why: str) -> None:
        """Part with an engine: it gets no more requests, is ended, and started again. Nothing if that was done."""
        if self._back.get(number) is engine:
            del self._back[number]
            self._part_with(number, engine, why)
        elif self.pool.live.get(number) is engine:
            self.pool.lose(number, why)

    async def admit(self, engines: Mapping[int, Engine], version: int) -> None:
        """These hold the weights of `version`: let those of them that are back serve."""
        for number, engine in engines.items():
            if self._back.get(number) is engine:
                self.pool.join(number, self._back.pop(number))
                self._tell(f"{engine.name} serves again, with the weights of version {version}")

    async def wait_for_one(self) -> None:
        """Return when an engine is present. Raises EngineDied with all reasons when none is started again in time."""
        deadline = asyncio.get_running_loop().time() + self._wait_s
        while not (self.pool.live or self._back):
            left_s = deadline - asyncio.get_running_loop().time()
            if not self._starting or left_s <= 0:
                why = f"waited {self._wait_s:g} s for one to start again" if self._starting else "none is started again"
                reasons = "; ".join(reason for _, reason in sorted(self._reasons.items()))
                raise EngineDied(f"no engine is left, and {why}: {reasons}")
            await asyncio.wait(self._starting.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    async def close(self) -> None:
        """Close every engine and stop starting any; then the first failure to close one that served is raised."""
        tasks = [*self._watches.values(), *self._starting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(_ended(engine) for engine in self._back.values()))
        await self.pool.close()

    def _part_with(self, number: int, engine: Engine, why: str) -> None:
        self._reasons[number] = why
        self._tell(f"{engine.name} is lost: {why}")
        if number in self._watches:
            self._watches.pop(number).cancel()
        task = asyncio.create_task(self._bring_back(number, engine), name=f"start engine {number} again")
        self._starting[number] = task
        task.add_done_callback(lambda _: self._started(number))

    def _hope_s(self) -> float:
        """One that is back waits for weights as long as the policy trains, which has limits of its own."""
        return math.inf if self._back else self._wait_s + CLOSE_S if self._starting else 0.0

    def _watch(self, number: int, engine: Engine) -> None:
        async def lose_when_silent(limit_s: float) -> None:
            await self.lose(number, engine, await until_silent(engine, limit_s))

        if self._stall_timeout_s is not None:
            name = f"watch over engine {number}"
            self._watches[number] = asyncio.create_task(lose_when_silent(self._stall_timeout_s), name=name)

    def _started(self, number: int) -> None:
        del self._starting[number]
        self.pool.look_again()

    async def _bring_back(self, number: int, lost: Engine) -> None:
        await _ended(lost)
        while self._restarts[number] < self._max_restarts:
            self._restarts[number] += 1
            self._tell(f"{lost.name} is started again ({self._restarts[number]} of {self._max_restarts} times)")
            try:
                engine = await self._start(number)
            except (EngineError, ClusterError) as error:
                self._reasons[number] = str(error)
                self._tell(f"{lost.name} did not start again: {error}")
                self.pool.look_again()  # the next start has its own time
                continue
            self._back[number] = engine
            self._watch(number, engine)
            self._tell(f"{lost.name} is back; it serves from the next weights on")
            return
        self._tell(f"{lost.name} is given up: rollout.max_restarts = {self._max_restarts} are used up")


async def _ended(engine: Engine) -> None:
    """Close it; what its end has to say is of no more interest, and it may hang."""
    with contextlib.suppress(EngineError, ClusterError, TimeoutError):
        await asyncio.wait_for(engine.close(), CLOSE_S)
