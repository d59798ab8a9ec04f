"""What self-play, evaluation and the weight refresh know of an engine."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from megatron_spell.types.play import Completion


class EngineError(ValueError):
    """An engine cannot do what was asked; the message names the engine."""


class PromptTooLong(EngineError):
    """The prompt leaves no room for a single new token in the engine's context."""


class EngineDied(EngineError):
    """The engine's process is gone."""


class EngineTimeout(EngineError):
    """The engine did not answer within the time limit."""


class EngineUnusable(EngineError):
    """A weight update failed half-way: what the engine holds is a mixture, and it writes nothing any more."""


class MixedVersions(EngineError):
    """The tokens of one completion were written by different policy versions."""


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How to continue a prompt.

    `temperature` 0 is greedy. Sampling ends with (and includes) the first token of `stop_ids`, or after `max_tokens`,
    or where the engine's context ends. Asked for are the samples `first` .. `first` + n - 1 of the seed: sample i
    depends on (`seed`, i) only, and differs from the others; a seed of None draws a fresh one.
    """

    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None = None
    n: int = 1
    stop_ids: tuple[int, ...] = ()
    first: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise EngineError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise EngineError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.max_tokens < 1 or self.n < 1:
            raise EngineError(f"max_tokens is {self.max_tokens} and n is {self.n}; both must be 1 or more")
        if self.first < 0:
            raise EngineError(f"first is {self.first}; samples are numbered from 0")


Part = Literal["weights", "cache"]


@runtime_checkable
class Engine(Protocol):
    """Writes completions; takes new weights through `connect` once and then begin, receive (1..n times), finish.

    During an update nothing is generated: `begin_update` waits for the requests in flight (an engine that takes weights
    in flight: holds them where they are), and later ones wait for `finish_update`. When any step of an update raises,
    the engine is unusable (EngineUnusable) for good.

    An engine that shares its GPU with a trainer sleeps while that trains: `sleep`, then `wake("weights")`, an update,
    and `wake("cache")`, after which it generates again.
    """

    name: str

    async def generate(
        self, prompt_ids_T: np.ndarray, spec: SamplingSpec, *, key: str | None = None
    ) -> list[Completion]:
        """The `spec.n` completions of one prompt, in sample order. Raises EngineError.

        `key` names the document set the prompt is made of: prompts of one key share a prefix worth keeping together.
        """
        ...

    async def connect(self, channel: dict) -> None:
        """Open the way on which weights come (plain values). Returns when the trainers are reached."""
        ...

    async def begin_update(self) -> None: ...

    async def receive_weights(self, request: dict) -> None: ...

    async def finish_update(self, version: int) -> None: ...

    async def sleep(self) -> str | None:
        """Let the requests in flight finish and give memory back; None when done, else why nothing was given back.

        In the second case nothing has changed, and `wake` does nothing.
        """
        ...

    async def wake(self, part: Part) -> None:
        """Take the memory of `part` back, weights first. Raises EngineError when there are no weights to go on with."""
        ...

    async def ping(self) -> None:
        """Return when every process of the engine that commands work has answered: a sign of life.

        During an update, whose steps have limits of their own, it may return at once. Raises EngineError.
        """
        ...

    async def close(self) -> None: ...
