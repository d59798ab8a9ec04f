"""A vLLM engine that counts what it does, and whose words may be put into its mouth."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.rollout.scripted import Reply
from megatron_spell.rollout.vllm_engine import VllmEngine
from megatron_spell.rollout.vllm_settings import prepare_environment
from megatron_spell.types.play import Completion


@dataclass(frozen=True, slots=True)
class Figures:
    """What an engine did in a stretch of time. Tokens and steps are vLLM's own count, aborted samples included."""

    seconds: float
    tokens: int
    prompt_tokens: int  # that were computed, not found in the cache
    steps: int
    samples: int  # that ended
    aborted: int
    seats_taken: float  # mean share of max_num_seqs that a sample under way took
    empty: float  # share of the time without any sample under way


class Meter:
    """Samples under way over time, and vLLM's counts."""

    def __init__(self, num_seats: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._num_seats, self._clock = num_seats, clock
        self._under_way = 0
        self.restart()

    def restart(self) -> None:
        self._began = self._seen = self._clock()
        self._seat_s = self._empty_s = 0.0
        self.tokens = self.prompt_tokens = self.steps = self.samples = self.aborted = 0

    def begin(self) -> None:
        self._look()
        self._under_way += 1

    def end(self, *, aborted: bool) -> None:
        self._look()
        self._under_way -= 1
        self.samples, self.aborted = self.samples + (not aborted), self.aborted + aborted

    def stop(self) -> Callable[[], Figures]:
        """Ends the stretch; the figures are called for when the counts of what is still on its way have come."""
        self._look()
        seconds, seat_s, empty_s = self._seen - self._began, self._seat_s, self._empty_s
        return lambda: Figures(
            seconds=seconds,
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
            steps=self.steps,
            samples=self.samples,
            aborted=self.aborted,
            seats_taken=seat_s / (seconds * self._num_seats),
            empty=empty_s / seconds,
        )

    def _look(self) -> None:
        now = self._clock()
        passed, self._seen = now - self._seen, now
        self._seat_s += passed * min(self._under_way, self._num_seats)
        self._empty_s += passed * (self._under_way == 0)

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        """Called by vLLM with every step's outputs."""
        if iteration_stats is not None:
            self.steps += 1
            self.tokens += iteration_stats.num_generation_tokens
            self.prompt_tokens += iteration_stats.prompt_token_stats.computed


class MeteredEngine(VllmEngine):
    """Every sample is a request to vLLM of its own, and really written, token by token.

    With `reply` a sample is as long as the reply, and the reply is what is heard. `policy_version` is that of what is
    begun from now on: nothing is trained here, but rounds are to grow stale as in a run.
    """

    def __init__(self, *args: Any, num_seats: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.meter = Meter(num_seats)
        self.reply: Reply | None = None
        self.policy_version = 0

    async def start(self) -> None:
        prepare_environment(self._settings.start_timeout_s)
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.metrics.loggers import StatLoggerBase

        class Logger(StatLoggerBase):
            def __init__(self, *args: Any) -> None: ...

            def log_engine_initialized(self) -> None: ...

            record = staticmethod(self.meter.record)

        # The engine keeps no statistics of its own; they come with a logger, which has no setting (vLLM 0.32).
        plain = AsyncLLM.from_engine_args
        AsyncLLM.from_engine_args = partial(plain, stat_loggers=[Logger])
        try:
            await super().start()
        finally:
            AsyncLLM.from_engine_args = plain

    async def generate(
        self, prompt_ids_T: np.ndarray, spec: SamplingSpec, *, key: str | None = None
    ) -> list[Completion]:
        wanted = range(spec.first, spec.first + spec.n)
        tasks = [asyncio.ensure_future(self._metered(prompt_ids_T, replace(spec, n=1, first=i), key)) for i in wanted]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def forget_prompts(self) -> None:
        """Drop the prefix cache: the next schedule finds nothing of this one's."""
        await self._drop_prefix_cache()

    async def _metered(self, prompt_ids_T: np.ndarray, spec: SamplingSpec, key: str | None) -> Completion:
        version, aborted = self.policy_version, True
        self.meter.begin()
        try:
            completion = await self._written(prompt_ids_T, spec, key)
            aborted = False
            return replace(completion, version=version)
        finally:
            self.meter.end(aborted=aborted)

    async def _written(self, prompt_ids_T: np.ndarray, spec: SamplingSpec, key: str | None) -> Completion:
        if self.reply is None:
            return (await super().generate(prompt_ids_T, spec, key=key))[0]
        heard_T = self.reply(prompt_ids_T, spec, spec.first)
        as_long = replace(spec, stop_ids=(), max_tokens=len(heard_T))
        (written,) = await super().generate(prompt_ids_T, as_long, key=key)
        if len(written.token_ids_T) != len(heard_T):
            raise ValueError(f"vLLM wrote {len(written.token_ids_T)} tokens where {len(heard_T)} were asked for")
        finished = bool(np.isin(heard_T[-1], spec.stop_ids))
        return replace(written, token_ids_T=heard_T, finish_reason="stop" if finished else "length")
