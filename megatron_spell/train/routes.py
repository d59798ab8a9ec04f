"""Who sends what to which engine: planned once for all engines, kept for those that come later."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.inventory import checkpoint_inventory, trainer_inventories
from megatron_spell.bridge.planner import Plan, Site, plan
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.layout.mesh import Mesh
from megatron_spell.rollout.landing import WorkerReport, target_inventory
from megatron_spell.rollout.native_delivery import SENDER


def plan_refresh(
    shape: ModelShape,
    mesh: Mesh,
    workers: Sequence[Inventory],
    num_engines: int,
    sites: Mapping[int, Site] | None = None,
) -> Plan:
    """The moves from every trainer rank into every engine; `workers` are what each worker of an engine takes.

    Trainers are ranks 0..world_size-1 of the bridge, the workers of engine 0, of engine 1, ... come after them; `sites`
    are where they run. One plan over all engines shares the sending evenly among trainers that hold the same.
    """
    sources = trainer_inventories(shape, mesh)
    return plan(sources, dict(enumerate([*workers] * num_engines, start=mesh.world_size)), sites)


def part_of(whole: Plan, engine: int, *, num_trainers: int, num_workers: int) -> Plan:
    """The part of the plan that ends in one engine, in the ranks of its link: its workers come after the trainers."""
    first = num_trainers + engine * num_workers
    moves = whole.into(range(first, first + num_workers)).moves
    return Plan(tuple(replace(move, dst_rank=move.dst_rank - first + num_trainers) for move in moves))


class Routes:
    """The parts of the plan by engine. All engines of a run are alike, so the first to say what it takes says it for
    all, and an engine that is started again finds its part as it was."""

    def __init__(self, config: RunConfig):
        self._shape = ModelShape.load(config.model.path)
        self._mesh = config.policy.mesh.mesh()
        self._num_engines = config.rollout.engines
        self._itemsize = getattr(torch, config.rollout.dtype).itemsize
        self._is_native = config.bridge.transport == "vllm_nccl"
        self._form: list[tuple] | None = None
        self._parts: dict[int, str] = {}
        self._num_bytes: dict[int, int] = {}

    def open(self, found: Mapping[int, Sequence[WorkerReport]], trainers: Callable[[], Sequence[Site]]) -> None:
        """Make the plan of the first engines that say what they take; `trainers` tells where the trainers run."""
        if self._form is not None or not found:
            return
        first = found[min(found)]
        sites = dict(enumerate(trainers()))
        for engine, workers in found.items():
            for i, report in enumerate(workers):
                sites[self._mesh.world_size + engine * len(first) + i] = (report.host, report.device)
        self._make([target_inventory(self._shape, report) for report in first], sites)
        self._form = _form(first)

    def fit(self, workers: Sequence[WorkerReport]) -> bool:
        """Whether an engine of these workers can be sent its part."""
        return self._form == _form(workers)

    def num_workers(self) -> int:
        """Of an engine."""
        return len(self._form or ())

    @property
    def is_in_place(self) -> bool:
        """Whether weights land in the engines' parameters."""
        return all(landing == "in_place" for _, landing in self._form or ())

    @cached_property
    def gathering(self) -> Plan | None:
        """What brings whole tensors to the rank that vLLM's own transfer sends from, where that is used."""
        if not self._is_native:
            return None
        return plan(trainer_inventories(self._shape, self._mesh), {SENDER: checkpoint_inventory(self._shape)})

    def part(self, engine: int) -> str:
        """The engine's part of the plan, as JSON, in the ranks of its link."""
        return self._parts[engine]

    def num_bytes(self, engine: int) -> int:
        """What a refresh brings to this engine."""
        return self._num_bytes[engine]

    def _make(self, workers: list[Inventory], sites: Mapping[int, Site]) -> None:
        whole = plan_refresh(self._shape, self._mesh, workers, self._num_engines, sites)
        for engine in range(self._num_engines):
            part = part_of(whole, engine, num_trainers=self._mesh.world_size, num_workers=len(workers))
            self._parts[engine] = part.to_json()
            moved = part if self.gathering is None else Plan(self.gathering.moves * len(workers))
            self._num_bytes[engine] = sum(moved.bytes_between(self._itemsize).values())


def _form(workers: Sequence[WorkerReport]) -> list[tuple]:
    return [(report.place, report.landing) for report in workers]
