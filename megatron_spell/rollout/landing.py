"""How an engine's workers take weights, as the trainers' side needs to know it (no vLLM, no torch)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from megatron_spell.bridge.boxes import Box, Inventory, Segment
from megatron_spell.bridge.engine_inventory import engine_inventory
from megatron_spell.bridge.stacks import is_stack
from megatron_spell.bridge.verify import Probe
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.engine_mesh import WorkerPlace

AT = "@"  # in no name of a weight


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker found its live model to be.

    `worker` is its rank in the engine. `landing` says how weights get in: "in_place" into the live parameters, or
    "checkpoint" through vLLM's reload, then `reason` says why. `host` and `device` are where its weights lie.
    """

    worker: int
    place: WorkerPlace
    landing: Literal["in_place", "checkpoint"]
    reason: str
    host: str
    device: str

    def to_json(self) -> str:
        layers = [self.place.layers.start, self.place.layers.stop]
        return json.dumps(asdict(self) | {"place": asdict(self.place) | {"layers": layers}})

    @classmethod
    def from_json(cls, text: str) -> "WorkerReport":
        """What `to_json` wrote."""
        raw = json.loads(text)
        place = raw["place"] | {"layers": range(*raw["place"]["layers"]), "experts": tuple(raw["place"]["experts"])}
        return cls(**raw | {"place": WorkerPlace(**place)})

    def __str__(self) -> str:
        how = "in place" if self.landing == "in_place" else f"in checkpoint form ({self.reason})"
        return f"worker {self.worker} on {self.host} {self.device}: {how}"


def target_inventory(shape: ModelShape, report: WorkerReport) -> Inventory:
    """What to send to the worker: the boxes that it holds, under vLLM's parameter names or under Hugging Face's."""
    held = engine_inventory(shape, report.place)
    return held if report.landing == "in_place" else checkpoint_form(held)


def probes_to_json(probes: Sequence[Probe]) -> str:
    return json.dumps([[p.hf_name, p.hf_box.start, p.hf_box.stop] for p in probes])


def probes_from_json(text: str) -> tuple[Probe, ...]:
    return tuple(Probe(name, Box(tuple(start), tuple(stop))) for name, start, stop in json.loads(text))


def checkpoint_form(inventory: Inventory) -> Inventory:
    """The same boxes, each once and a tensor of its own, named after where it lies in Hugging Face's tensor.

    Of a stack the tensors stay apart, so their index stays.
    """
    return tuple(dict.fromkeys(_in_checkpoint(s.hf_name, s.hf_box) for s in inventory))


def in_checkpoint(name: str, box: Box) -> tuple[str, Box]:
    """Tensor and box that a name of `checkpoint_form` and a box there mean; other names mean themselves."""
    own, at, offset = name.rpartition(AT)
    if not at:
        return name, box
    return own, box.moved((0,) * len(box.start), tuple(map(int, offset.split(","))))


def _in_checkpoint(name: str, box: Box) -> Segment:
    kept = 1 if is_stack(name) else 0
    offset = box.start[kept:]
    local = box.moved(box.start, (*box.start[:kept], *(0,) * len(offset)))
    return Segment(name, box, f"{name}{AT}{','.join(map(str, offset))}", local)


def link_names(num_trainers: int, engine: str, num_workers: int) -> dict[int, str]:
    """Names for error messages of the ranks of one link: trainers first, then the engine's workers."""
    workers: Sequence[str] = [engine] if num_workers == 1 else [f"{engine} worker {i}" for i in range(num_workers)]
    trainers = {rank: f"trainer rank {rank}" for rank in range(num_trainers)}
    return trainers | {num_trainers + i: name for i, name in enumerate(workers)}
