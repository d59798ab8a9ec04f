"""An engine whose requests take as long as a test wants, and that notes what became of each."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields, is_dataclass

import numpy as np

from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.rollout.scripted import ScriptedEngine
from megatron_spell.selfplay.table import Table
from megatron_spell.types.play import Completion, Role
from tests.unit.selfplay.playing import role_of


@dataclass(eq=False)
class Request:
    role: Role
    blind: bool
    prompt: str
    spec: SamplingSpec
    key: str | None
    ended: bool = False
    cancelled: bool = False
    failed: bool = False

    @property
    def samples(self) -> range:
        return range(self.spec.first, self.spec.first + self.spec.n)


Pace = Callable[[Request], Awaitable[None]]


async def at_once(request: Request) -> None:
    """No wait."""


@dataclass
class PacedEngine:
    """Passes on what `held` says after `pace` has let the request go."""

    held: ScriptedEngine
    decode: Callable[[np.ndarray], str]
    pace: Pace = at_once
    requests: list[Request] = field(default_factory=list)

    async def generate(
        self, prompt_ids_T: np.ndarray, spec: SamplingSpec, *, key: str | None = None
    ) -> list[Completion]:
        prompt = self.decode(prompt_ids_T)
        request = Request(role_of(prompt), "(no text is given)" in prompt, prompt, spec, key)
        self.requests.append(request)
        try:
            await self.pace(request)
            completions = await self.held.generate(prompt_ids_T, spec, key=key)
        except asyncio.CancelledError:
            request.cancelled = True
            raise
        except Exception:
            request.failed = True
            raise
        request.ended = True
        return completions

    def of(self, role: Role, *, blind: bool = False) -> list[Request]:
        return [r for r in self.requests if r.role == role and r.blind == blind]

    @property
    def votes(self) -> list[Request]:
        return self.of(Role.VERIFIER)

    @property
    def num_open(self) -> int:
        return sum(not (r.ended or r.cancelled or r.failed) for r in self.requests)


def paced(table: Table, pace: Pace = at_once) -> PacedEngine:
    """Puts a paced engine before the table's own."""
    engine = PacedEngine(table.engine, table.tokenizer.decode, pace)
    object.__setattr__(table, "engine", engine)
    return engine


def plain(value: object) -> object:
    """A round as nested lists and scalars, to be compared by value."""
    if is_dataclass(value):
        return [type(value).__name__, *(plain(getattr(value, f.name)) for f in fields(value))]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(each) for each in value] if isinstance(value, (tuple, list)) else value
