"""Bringing the policy's weights into the engines: who is paused, who sends, who receives, and in which order."""

import time
from dataclasses import asdict, dataclass

import torch

from megatron_spell.bridge.inventory import checkpoint_inventory, trainer_inventory
from megatron_spell.bridge.planner import Plan, plan
from megatron_spell.cluster.local import free_port
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.layout.mesh import Mesh
from megatron_spell.rollout.engine import Engine
from megatron_spell.train.background import Background
from megatron_spell.train.crew import Crew
from megatron_spell.train.member import Meeting


@dataclass(frozen=True, slots=True)
class Refreshed:
    """`num_bytes` crossed from trainers to engines within `seconds`, pausing and cache flush included."""

    num_bytes: int
    seconds: float

    def metrics(self) -> dict[str, float]:
        return {"bridge/bytes": float(self.num_bytes), "bridge/seconds": self.seconds}


def plan_refresh(shape: ModelShape, mesh: Mesh, num_engines: int) -> Plan:
    """The moves from every trainer rank into every engine. Engines take whole Hugging Face tensors (checkpoint form).

    Trainers are ranks 0..world_size-1 of the bridge, engines the ranks after them.
    """
    sources = {rank: trainer_inventory(shape, mesh, rank) for rank in range(mesh.world_size)}
    whole = checkpoint_inventory(shape)
    return plan(sources, {mesh.world_size + number: whole for number in range(num_engines)})


# Engines and trainers have limits of their own, whose messages say more; ours comes after them.
MARGIN_S = 30.0


class Refresh:
    """The trainers' and engines' common channel; opened at the first publish, and kept."""

    def __init__(self, config: RunConfig, crew: Crew, engines: Engine, background: Background, host: str):
        self._config, self._crew, self._engines, self._background = config, crew, engines, background
        self._mesh, self._host = config.policy.mesh.mesh(), host
        self._plan = plan_refresh(ModelShape.load(config.model.path), self._mesh, config.rollout.engines)
        itemsize = getattr(torch, config.rollout.dtype).itemsize
        self._num_bytes = sum(self._plan.bytes_between(itemsize).values())
        self._connected = False

    def publish(self, version: int) -> Refreshed:
        """Put the policy's present weights into every engine as `version`; nothing is generated meanwhile.

        Raises EngineError or TransportError naming who failed; an engine that failed half-way is unusable.
        """
        started = time.perf_counter()
        if not self._connected:
            self._connect()
        self._background.run(self._engines.begin_update())
        receiving = self._background.start(self._engines.receive_weights({}))
        self._crew.call("send")
        receiving.result(self._config.bridge.timeout_s + MARGIN_S)
        self._background.run(self._engines.finish_update(version))
        return Refreshed(self._num_bytes, time.perf_counter() - started)

    def _connect(self) -> None:
        meeting = Meeting(
            plan=self._plan.to_json(),
            size=self._mesh.world_size + self._config.rollout.engines,
            num_trainers=self._mesh.world_size,
            host=self._host,
            port=free_port(),
            dtype=self._config.rollout.dtype,
            bucket_bytes=int(self._config.bridge.bucket_mib * 2**20),
            timeout_s=self._config.bridge.timeout_s,
        )
        coming = self._background.start(self._engines.connect(asdict(meeting) | {"rank": meeting.num_trainers}))
        self._crew.call("connect", meeting)
        coming.result(self._config.bridge.timeout_s + MARGIN_S)
        self._connected = True
