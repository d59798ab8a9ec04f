"""Bringing the policy's weights into the engines: who is paused, who sends, who receives, and in which order.

A publish ends with every engine that serves holding the same weights, whole. An engine that fails on the way is lost:
it leaves the pool, is started again, and comes back with the weights of a later publish.
"""

import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import cached_property
from itertools import count, pairwise
from typing import Any, TypeVar

import torch

from megatron_spell.bridge.receipts import WrongWeights
from megatron_spell.cluster.local import free_port
from megatron_spell.config.schema import RunConfig
from megatron_spell.rollout.engine import Engine, EngineError
from megatron_spell.rollout.native_delivery import delivery
from megatron_spell.train.background import Background
from megatron_spell.train.crew import Crew
from megatron_spell.train.fleet import Fleet
from megatron_spell.train.links import Meeting, NativeMeeting, Sent
from megatron_spell.train.routes import Routes

LOOK_S = 0.5  # how often it is looked whether engines that play want weights
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refreshed:
    """`num_bytes` crossed from trainers into `num_engines` engines within `seconds`, waits for lost engines included.

    The steps: engines pause (and newcomers are met), weights cross, engines put them in force.
    """

    num_bytes: int
    num_engines: int
    seconds: float
    pause_seconds: float
    transfer_seconds: float
    finish_seconds: float

    def metrics(self) -> dict[str, float]:
        return {
            "bridge/bytes": float(self.num_bytes),
            "bridge/engines": float(self.num_engines),
            "bridge/seconds": self.seconds,
            "bridge/pause_seconds": self.pause_seconds,
            "bridge/transfer_seconds": self.transfer_seconds,
            "bridge/finish_seconds": self.finish_seconds,
            "bridge/gb_per_second": self.num_bytes / 1e9 / max(self.transfer_seconds, 1e-9),
        }


class Refresh:
    """The trainers' and the engines' common channel. Links are made as engines come, and kept."""

    def __init__(
        self,
        config: RunConfig,
        crew: Crew,
        fleet: Fleet,
        background: Background,
        host: str,
        tell: Callable[[str], None] = lambda line: None,
    ):
        self._config, self._crew, self._fleet, self._background = config, crew, fleet, background
        self._host, self._tell = host, tell
        self._is_colocated = config.rollout.placement == "colocated"
        self._routes = Routes(config)
        self._bucket_bytes = int(config.bridge.bucket_mib * 2**20 / config.rollout.engines)  # of each link
        self._linked: dict[int, Engine] = {}
        self._sessions = count()

    def publish(self, version: int) -> Refreshed:
        """Put the policy's present weights into every engine as `version`; nothing is generated meanwhile.

        Engines that fail are lost; when all are, this waits for one to start again. Raises EngineError when none does,
        and WrongWeights, after which no engine has been given `version`.
        """
        started = time.perf_counter()
        while True:
            marks = [time.perf_counter()]
            taking = self._taking()
            self._pause(taking)
            marks.append(time.perf_counter())
            self._transfer(taking, version)
            marks.append(time.perf_counter())
            self._finish(taking, version)
            marks.append(time.perf_counter())
            if taking.engines:
                break
            self._background.run(self._fleet.wait_for_one())
        num_bytes = sum(self._routes.num_bytes(number) for number in taking.engines)
        seconds = [after - before for before, after in pairwise(marks)]
        return Refreshed(num_bytes, len(taking.engines), marks[-1] - started, *seconds)

    def while_playing(self, work: Coroutine[Any, Any, T], version: int) -> T:
        """The result of `work`, which asks engines; raises what it raises, and what `publish` does.

        When the last engine is lost meanwhile, the first that is started again is given the policy's present weights,
        those of `version`, and the requests that wait go on.
        """
        future = self._background.start(work)
        try:
            while not future.done():
                wait([future], timeout=LOOK_S)
                if self._background.run(self._fleet.awaits_weights()):
                    self.publish(version)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def rest(self) -> None:
        """Let engines that share the trainers' GPUs give their memory back until the next publish."""
        if self._is_colocated:
            reasons = self._taking().ask("sleep", lambda engine: engine.sleep()).values()
            for reason in sorted({reason for reason in reasons if reason is not None}):
                self._tell(f"engines keep their memory while the policy trains: {reason}")

    def _pause(self, taking: "_Taking") -> None:
        if self._is_colocated:
            taking.ask("wake", lambda engine: engine.wake("weights"))
        self._connect(taking)
        taking.ask("begin_update", lambda engine: engine.begin_update())

    def _connect(self, taking: "_Taking") -> None:
        """Make links to newcomers, and close those whose engine is gone."""
        gone = [number for number, engine in self._linked.items() if taking.engines.get(number) is not engine]
        for number in gone:
            del self._linked[number]
        if gone:
            self._crew.call("drop", gone)
        found = taking.ask(
            "describe", lambda engine: engine.describe(), among=taking.engines.keys() - self._linked.keys()
        )
        self._routes.open(found, lambda: self._crew.call("sites"))
        for number, workers in found.items():
            if not self._routes.fit(workers):
                name = taking.engines[number].name
                taking.lose(number, f"{name} lays the model out in another way than the engines before it")
        newcomers = {number: taking.engines[number] for number in found if number in taking.engines}
        if newcomers:
            meetings = [self._meeting(number, engine) for number, engine in newcomers.items()]
            coming = taking.start(newcomers, {m.engine: (lambda e, m=m: e.connect(m.channel())) for m in meetings})
            taking.settle("connect", coming, self._crew.call("connect", meetings))
            self._linked |= newcomers  # also who did not come: its link is closed with the next publish

    def _meeting(self, number: int, engine: Engine) -> Meeting:
        config, gathering = self._config, self._routes.gathering
        return Meeting(
            engine=number,
            name=engine.name,
            plan=self._routes.part(number),
            num_workers=self._routes.num_workers(),
            num_trainers=config.policy.mesh.mesh().world_size,
            host=self._host,
            port=free_port(),
            dtype=config.rollout.dtype,
            bucket_bytes=self._bucket_bytes,
            timeout_s=config.bridge.timeout_s,
            session=f"engine {number}, meeting {next(self._sessions)}",
            transport=config.bridge.transport,
            is_direct=config.bridge.transport == "cuda_ipc" and self._routes.is_in_place,
            native=None if gathering is None else NativeMeeting(free_port(), gathering.to_json()),
        )

    def _transfer(self, taking: "_Taking", version: int) -> None:
        """Send to all at once. Raises WrongWeights."""
        if not taking.engines:
            return
        check = version if self._config.bridge.check else None
        request = self._request(check)
        receiving = taking.start(taking.engines, dict.fromkeys(taking.engines, lambda e: e.receive_weights(request)))
        sent: Sent = self._crew.call("send", sorted(taking.engines), check)
        if sent.wrong is not None:
            raise WrongWeights(sent.wrong)
        taking.settle("receive_weights", receiving, sent.lost)

    def _request(self, check: int | None) -> dict[str, Any]:
        return {"check": check} if self._native_delivery is None else self._native_delivery

    @cached_property
    def _native_delivery(self) -> dict[str, Any] | None:
        gathering, dtype = self._routes.gathering, self._config.rollout.dtype
        if gathering is None:
            return None
        return delivery(gathering, dtype, self._bucket_bytes, getattr(torch, dtype).itemsize)

    def _finish(self, taking: "_Taking", version: int) -> None:
        taking.ask("finish_update", lambda engine: engine.finish_update(version))
        if self._is_colocated:
            taking.ask("wake", lambda engine: engine.wake("cache"))
        self._background.run(self._fleet.admit(taking.engines, version))

    def _taking(self) -> "_Taking":
        present = self._background.run(self._fleet.present())
        return _Taking(present, self._fleet, self._background, self._config.bridge.timeout_s)


Call = Callable[[Engine], Coroutine[Any, Any, Any]]


class _Taking:
    """The engines that take part in a publish, by number. One that fails a step is lost and takes no part in the next.

    No step takes longer than `limit_s`.
    """

    def __init__(self, engines: Mapping[int, Engine], fleet: Fleet, background: Background, limit_s: float):
        self.engines = dict(engines)
        self._fleet, self._background, self._limit_s = fleet, background, limit_s

    def ask(self, step: str, call: Call, among: set[int] | None = None) -> dict[int, Any]:
        """Have all (or those `among` them) do a step at the same time; the answers of those that did."""
        asked = {n: engine for n, engine in self.engines.items() if among is None or n in among}
        return self.settle(step, self.start(asked, dict.fromkeys(asked, call)), {})

    def start(self, engines: Mapping[int, Engine], calls: Mapping[int, Call]) -> dict[int, Future[Any]]:
        return {number: self._background.start(calls[number](engine)) for number, engine in engines.items()}

    def settle(self, step: str, under_way: Mapping[int, Future[Any]], found: Mapping[int, str]) -> dict[int, Any]:
        """Wait for the end of a step; `found` is what the trainers know of engines that are lost."""
        deadline, answers = time.monotonic() + self._limit_s, {}
        for number, future in under_way.items():
            reasons = [found[number]] if number in found else []
            try:
                answers[number] = future.result(0.0 if reasons else max(0.0, deadline - time.monotonic()))
            except EngineError as error:
                reasons.append(str(error))
            except TimeoutError:
                future.cancel()
                reasons = reasons or [f"{self.engines[number].name}: waited {self._limit_s:g} s for {step}"]
            if reasons:
                answers.pop(number, None)
                self.lose(number, "; ".join(reasons))
        return answers

    def lose(self, number: int, why: str) -> None:
        self._background.run(self._fleet.lose(number, self.engines.pop(number), why))
