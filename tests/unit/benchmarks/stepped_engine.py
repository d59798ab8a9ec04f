"""An engine in a time of its own: a step costs `step_s` and `token_s` for each sequence, as of an engine on a CPU."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.rollout.scripted import Reply
from megatron_spell.types.play import Completion

TURNS = 25  # of the event loop after a step in which something ended: who hears of it may ask for more


@dataclass(eq=False)
class Sequence:
    num_left: int
    ended: asyncio.Future


@dataclass
class SteppedEngine:
    """Has what rollout.py uses of a MeteredEngine; `meter` is made by the caller, with `clock` as its clock."""

    reply: Reply
    num_seats: int
    step_s: float = 0.0045
    token_s: float = 0.0003
    policy_version: int = 0
    name: str = "stepped engine"
    now_s: float = 0.0
    meter: object = None
    _waiting: deque = field(default_factory=deque)
    _running: list = field(default_factory=list)
    _stepping: asyncio.Task | None = None

    def clock(self) -> float:
        return self.now_s

    async def forget_prompts(self) -> None: ...

    async def generate(
        self, prompt_ids_T: np.ndarray, spec: SamplingSpec, *, key: str | None = None
    ) -> list[Completion]:
        samples = range(spec.first, spec.first + spec.n)
        return list(await asyncio.gather(*(self._sample(prompt_ids_T, spec, i) for i in samples)))

    async def _sample(self, prompt_ids_T: np.ndarray, spec: SamplingSpec, sample: int) -> Completion:
        token_ids_T, version, aborted = self.reply(prompt_ids_T, spec, sample), self.policy_version, True
        sequence = Sequence(len(token_ids_T), asyncio.get_running_loop().create_future())
        self._waiting.append(sequence)
        self.meter.begin()
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._steps())
        try:
            await sequence.ended
            aborted = False
        finally:
            self.meter.end(aborted=aborted)
        reason = "stop" if token_ids_T[-1] in spec.stop_ids else "length"
        return Completion(token_ids_T, np.zeros(len(token_ids_T), np.float32), reason, version)

    async def _steps(self) -> None:
        await self._let_others()
        while self._running or self._waiting:
            self._running = [s for s in self._running if not s.ended.done()]
            while self._waiting and len(self._running) < self.num_seats:
                sequence = self._waiting.popleft()
                self._running += [sequence] * (not sequence.ended.done())
            if not self._running:
                return
            self.now_s += self.step_s + self.token_s * len(self._running)
            self.meter.steps += 1
            self.meter.tokens += len(self._running)
            for sequence in self._running:
                sequence.num_left -= 1
            ended = [s for s in self._running if not s.num_left]
            for sequence in ended:
                sequence.ended.set_result(None)
            self._running = [s for s in self._running if s.num_left]
            if ended:
                await self._let_others()

    async def _let_others(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
