"""An engine that says what it is told: for tests and dry runs of everything above the engines."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_spell.rollout.engine import EngineError, Part, PromptTooLong, SamplingSpec
from megatron_spell.rollout.turnstile import Turnstile
from megatron_spell.types.play import Completion, ExpertChoices

Reply = Callable[[np.ndarray, SamplingSpec, int], Sequence[int] | np.ndarray]
UpdateStep = str  # "connect", "begin_update", "receive_weights", "finish_update", "sleep" or "wake"


@dataclass(slots=True)
class Counts:
    """What a scripted engine was asked and gave so far."""

    calls: int = 0
    completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    updates: int = 0


@dataclass(slots=True)
class ScriptedEngine:
    """Answers `reply(prompt_ids_T, spec, sample_index)`; deterministic when `reply` is.

    A reply is cut after the first token of `spec.stop_ids` and at `spec.max_tokens`, as a real engine would; a reply
    that reaches `max_tokens` without a stop token finishes with "length". `log_probs` maps a reply's tokens to their
    log-probabilities (default: -1 each), `experts` a prompt and a reply to recorded expert choices. `delay_s` gives
    the seconds a call takes, from its index. `failures` maps the index of a call to the error it raises,
    `update_failures` the step of an update.
    """

    reply: Reply
    name: str = "scripted engine"
    version: int = 0
    max_model_len: int | None = None
    log_probs: Callable[[np.ndarray], np.ndarray] = lambda token_ids_T: np.full(len(token_ids_T), -1.0, np.float32)
    experts: Callable[[np.ndarray, np.ndarray], ExpertChoices] | None = None
    delay_s: Callable[[int], float] = lambda call: 0.0
    failures: Mapping[int, Exception] = field(default_factory=dict)
    update_failures: Mapping[UpdateStep, Exception] = field(default_factory=dict)
    timeout_s: float = 60.0
    counts: Counts = field(default_factory=Counts)
    requests: list[dict] = field(default_factory=list)  # the weight requests received
    keys: list[str | None] = field(default_factory=list)  # the `key` of each call
    calls_of_sleep: list[str] = field(default_factory=list)  # "sleep" and the parts woken, in order
    closed: bool = False
    _turnstile: Turnstile = field(init=False)

    def __post_init__(self) -> None:
        self._turnstile = Turnstile(self.name, self.version)

    async def generate(
        self, prompt_ids_T: np.ndarray, spec: SamplingSpec, *, key: str | None = None
    ) -> list[Completion]:
        call = self.counts.calls
        self.counts.calls += 1
        self.keys.append(key)
        self._check(prompt_ids_T)
        async with self._turnstile.request(self.timeout_s):
            version = self._turnstile.version
            await asyncio.sleep(self.delay_s(call))
            if call in self.failures:
                raise self.failures[call]
            completions = [
                self._complete(prompt_ids_T, spec, i, version) for i in range(spec.first, spec.first + spec.n)
            ]
        self.counts.prompt_tokens += len(prompt_ids_T)
        self.counts.completions += spec.n
        self.counts.completion_tokens += sum(len(c.token_ids_T) for c in completions)
        return completions

    async def connect(self, channel: dict) -> None:
        self._plant("connect")

    async def begin_update(self) -> None:
        await self._turnstile.close(self.timeout_s)
        self._plant("begin_update")

    async def receive_weights(self, request: dict) -> None:
        self._turnstile.expect_update()
        self._plant("receive_weights")
        self.requests.append(request)

    async def finish_update(self, version: int) -> None:
        self._turnstile.expect_update()
        self._plant("finish_update")
        self.counts.updates += 1
        self.version = version
        self._turnstile.reopen(version)

    async def sleep(self) -> str | None:
        """Only notes it; nothing is held back meanwhile."""
        self._plant("sleep")
        self.calls_of_sleep.append("sleep")
        return None

    async def wake(self, part: Part) -> None:
        self._plant("wake")
        self.calls_of_sleep.append(part)

    async def ping(self) -> None:
        self._turnstile.check()

    async def close(self) -> None:
        self.closed = True
        self._turnstile.break_down("it was closed")

    def _check(self, prompt_ids_T: np.ndarray) -> None:
        if len(prompt_ids_T) == 0:
            raise EngineError(f"{self.name}: the prompt is empty")
        if self.max_model_len is not None and len(prompt_ids_T) >= self.max_model_len:
            raise PromptTooLong(
                f"{self.name}: a prompt of {len(prompt_ids_T)} tokens leaves no room in {self.max_model_len}"
            )

    def _plant(self, step: UpdateStep) -> None:
        if step in self.update_failures:
            self._turnstile.break_down(f"{step} failed: {self.update_failures[step]}")
            raise self.update_failures[step]

    def _complete(self, prompt_ids_T: np.ndarray, spec: SamplingSpec, sample: int, version: int) -> Completion:
        token_ids_T = np.asarray(self.reply(prompt_ids_T, spec, sample), np.int32)
        stops = np.flatnonzero(np.isin(token_ids_T, spec.stop_ids))
        stopped = len(stops) > 0 and stops[0] < spec.max_tokens
        room = self.max_model_len - len(prompt_ids_T) if self.max_model_len is not None else spec.max_tokens
        token_ids_T = token_ids_T[: stops[0] + 1 if stopped else min(spec.max_tokens, room)]
        cut = not stopped and len(token_ids_T) >= min(spec.max_tokens, room)
        experts = self.experts(prompt_ids_T, token_ids_T) if self.experts else None
        return Completion(token_ids_T, self.log_probs(token_ids_T), "length" if cut else "stop", version, experts)
