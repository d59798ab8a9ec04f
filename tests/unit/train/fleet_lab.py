"""Scripted engines that note what they are asked, and trainers that only say how their sending went."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from megatron_spell.bridge.engine_inventory import engine_places
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.rollout.engine import EngineError
from megatron_spell.rollout.landing import WorkerReport
from megatron_spell.rollout.scripted import ScriptedEngine
from megatron_spell.train.background import Background
from megatron_spell.train.crew import Crew
from megatron_spell.train.fleet import Fleet
from megatron_spell.train.links import Meeting, Sent
from megatron_spell.train.refresh import Refresh


@dataclass(slots=True)
class NotingEngine(ScriptedEngine):
    """`journal` takes (engine, step); `hangs` are steps that never end."""

    journal: list[tuple[str, str]] = field(default_factory=list)
    hangs: set[str] = field(default_factory=set)
    channels: list[dict] = field(default_factory=list)
    reports: list[WorkerReport] = field(default_factory=list)

    async def describe(self) -> list[WorkerReport]:
        return self.reports

    async def connect(self, channel: dict) -> None:
        self.channels.append(channel)
        await self._note("connect")
        await ScriptedEngine.connect(self, channel)

    async def begin_update(self) -> None:
        await self._note("begin_update")
        if not self.channels:
            raise EngineError(f"{self.name}: a weight update was begun before the channel was opened")
        await ScriptedEngine.begin_update(self)

    async def receive_weights(self, request: dict) -> None:
        await self._note("receive_weights")
        await ScriptedEngine.receive_weights(self, request)

    async def finish_update(self, version: int) -> None:
        await self._note("finish_update")
        await ScriptedEngine.finish_update(self, version)

    async def sleep(self) -> str | None:
        await self._note("sleep")

    async def wake(self, part: str) -> None:
        await self._note(f"wake {part}")

    async def close(self) -> None:
        await self._note("close")
        await ScriptedEngine.close(self)

    async def _note(self, step: str) -> None:
        self.journal.append((self.name, step))
        if step in self.hangs:
            await asyncio.sleep(3600)


@dataclass(slots=True)
class ScriptedTrainers:
    """`absent` and `sent` are what connecting and sending say, once each."""

    journal: list[tuple[str, str]]
    absent: dict[int, str] = field(default_factory=dict)
    sent: Sent = field(default_factory=lambda: Sent({}))
    meetings: list[Meeting] = field(default_factory=list)
    checks: list[int | None] = field(default_factory=list)
    dropped: list[list[int]] = field(default_factory=list)

    def sites(self) -> list[tuple[str, str]]:
        return [("here", "cpu")]

    def connect(self, meetings: list[Meeting]) -> dict[int, str]:
        self.journal.append(("trainers", "connect"))
        self.meetings += meetings
        absent, self.absent = self.absent, {}
        return absent

    def send(self, engines: list[int], check: int | None) -> Sent:
        self.journal.append(("trainers", "send"))
        self.checks.append(check)
        sent, self.sent = self.sent, Sent({})
        return sent

    def drop(self, engines: list[int]) -> None:
        self.dropped.append(engines)


@dataclass(slots=True)
class Lab:
    refresh: Refresh
    fleet: Fleet
    trainers: ScriptedTrainers
    background: Background
    engines: list[NotingEngine]  # the first ones, then those started again
    journal: list[tuple[str, str]]
    told: list[str]

    def live(self) -> dict[int, NotingEngine]:
        return self.fleet.pool.live

    def settle(self) -> None:
        """Wait until nobody is being started."""

        async def until_started() -> None:
            await asyncio.gather(*self.fleet._starting.values(), return_exceptions=True)

        self.background.run(until_started(), 10)


def make_lab(
    config: RunConfig, restart: Callable[[int], Exception | None] = lambda number: None, tell: list | None = None
) -> Lab:
    """`restart` gives the error of a restart of an engine, None where it succeeds."""
    journal: list[tuple[str, str]] = []
    told: list[str] = [] if tell is None else tell
    background = Background()
    places = engine_places(ModelShape.load(config.model.path), config.rollout.mesh())
    reports = [WorkerReport(i, place, "checkpoint", "scripted", "here", "cpu") for i, place in enumerate(places)]
    made: list[NotingEngine] = []

    async def start(number: int) -> NotingEngine:
        error = restart(number) if len(made) >= config.rollout.engines else None
        if error is not None:
            raise error
        made.append(NotingEngine(lambda *_: [number], name=f"engine {number}", journal=journal, reports=reports))
        return made[-1]

    async def make_fleet() -> Fleet:
        engines = [await start(number) for number in range(config.rollout.engines)]
        limits = {"max_restarts": config.rollout.max_restarts, "start_timeout_s": config.rollout.start_timeout_s}
        return Fleet(engines, start, **limits, tell=told.append)

    fleet = background.run(make_fleet())
    trainers = ScriptedTrainers(journal)
    refresh = Refresh(config, Crew(trainers, wait_s=5), fleet, background, "127.0.0.1", told.append)
    return Lab(refresh, fleet, trainers, background, made, journal, told)
