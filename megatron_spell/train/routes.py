"""Who sends what to which engine: planned once for all engines, kept for those that come later."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.inventory import checkpoint_inventory, trainer_inventory
from megatron_spell.bridge.planner import Plan, plan
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.layout.mesh import Mesh
from megatron_spell.rollout.engine import Engine


def plan_refresh(shape: ModelShape, mesh: Mesh, workers: Sequence[Inventory], num_engines: int) -> Plan:
    """The moves from every trainer rank into every engine; `workers` are what each worker of an engine takes.

    Trainers are ranks 0..world_size-1 of the bridge, the workers of engine 0, of engine 1, ... come after them. One
    plan over all engines shares the sending evenly among trainers that hold the same.
    """
    sources = {rank: trainer_inventory(shape, mesh, rank) for rank in range(mesh.world_size)}
    return plan(sources, dict(enumerate([*workers] * num_engines, start=mesh.world_size)))


def part_of(whole: Plan, engine: int, *, num_trainers: int, num_workers: int) -> Plan:
    """The part of the plan that ends in one engine, in the ranks of its link: its workers come after the trainers."""
    first = num_trainers + engine * num_workers
    moves = whole.into(range(first, first + num_workers)).moves
    return Plan(tuple(replace(move, dst_rank=move.dst_rank - first + num_trainers) for move in moves))


async def targets_of(engine: Engine, shape: ModelShape, num_workers: int) -> list[Inventory]:
    """What each worker of the engine takes: whole Hugging Face tensors (checkpoint form)."""
    return [checkpoint_inventory(shape)] * num_workers


class Routes:
    """The parts of the plan by engine. All engines of a run are alike, so the first to say what it takes says it for
    all, and an engine that is started again finds its part as it was."""

    def __init__(self, config: RunConfig):
        self._shape = ModelShape.load(config.model.path)
        self._mesh = config.policy.mesh.mesh()
        self._num_engines, self._num_workers = config.rollout.engines, config.rollout.mesh().num_workers
        self._itemsize = getattr(torch, config.rollout.dtype).itemsize
        self._workers: list[Inventory] | None = None
        self._parts: dict[int, str] = {}
        self._num_bytes: dict[int, int] = {}

    async def targets_of(self, engine: Engine) -> list[Inventory]:
        return await targets_of(engine, self._shape, self._num_workers)

    def fit(self, workers: list[Inventory]) -> bool:
        """Whether an engine whose workers take this can be sent its part; of the first engine the plan is made."""
        if self._workers is None:
            self._make(workers)
        return self._workers == workers

    def part(self, engine: int) -> str:
        """The engine's part of the plan, as JSON, in the ranks of its link."""
        return self._parts[engine]

    def num_bytes(self, engine: int) -> int:
        """What a refresh brings to this engine."""
        return self._num_bytes[engine]

    def _make(self, workers: list[Inventory]) -> None:
        whole = plan_refresh(self._shape, self._mesh, workers, self._num_engines)
        for engine in range(self._num_engines):
            part = part_of(whole, engine, num_trainers=self._mesh.world_size, num_workers=len(workers))
            self._parts[engine] = part.to_json()
            self._num_bytes[engine] = sum(part.bytes_between(self._itemsize).values())
        self._workers = workers
