"""Writing a policy's checkpoint while the policy goes on: what each rank contributes, and a channel of its own for it.

Ranks that hold a parameter alike (data- and context-parallel ones, copies of norms) share out who contributes it, so
that the copies a snapshot takes on all ranks together are one copy of the model's state.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_spell.bridge.boxes import Inventory, Segment
from megatron_spell.bridge.export import FolderPlan, gather_to_writer
from megatron_spell.bridge.hf_files import FolderError
from megatron_spell.bridge.inventory import checkpoint_inventory, trainer_inventories
from megatron_spell.bridge.stacks import local_names
from megatron_spell.bridge.transports.base import peer_names
from megatron_spell.bridge.transports.gloo import GroupTransport
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy.checkpoint import WEIGHTS, write_state

WRITER = 0


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The tensors (by local name) of one folder of a checkpoint, and the dtype they are written in."""

    folder: str
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class PolicyState:
    """What one rank gives to a checkpoint. `record` is policy.json; `companions` holds config and tokenizer files."""

    parts: Iterable[Part]
    record: dict
    companions: Path | None


class CheckpointWriter:
    """One rank's end of writing checkpoints; made by all ranks together.

    It has a gloo group that nothing else uses, so that writing in another thread meets no collective of the policy.
    """

    def __init__(self, shape: ModelShape, mesh: Mesh, timeout_s: float) -> None:
        inventories = trainer_inventories(shape, mesh)
        self._shares = shared_out(inventories)
        self._plan = FolderPlan(self._shares, checkpoint_inventory(shape), writers=(WRITER,))
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        names = peer_names(mesh.world_size, 0)
        self._transport = GroupTransport(self._group, timeout_s=timeout_s, names=names)

    def copies(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of `tensors` that this rank contributes, copied to host memory."""
        own = local_names(self._shares[self._transport.rank])
        return {name: tensors[name].detach().to("cpu", copy=True) for name in sorted(own)}

    def write(self, folder: Path, state: PolicyState) -> None:
        """Write all parts and policy.json. Raises FolderError on all ranks, TransportError when a rank is lost."""
        for part in state.parts:
            self.write_folder(folder / part.folder, part, state.companions if part.folder == WEIGHTS else None)
        fault = None
        if self._transport.rank == WRITER:
            try:
                write_state(folder, state.record)
            except FolderError as error:
                fault = str(error)
        self.agree(fault)

    def write_folder(self, folder: Path, part: Part, companions: Path | None) -> None:
        """Write one part as a new Hugging Face `folder`, with config and tokenizer files copied from `companions`."""
        gather_to_writer(folder, part.tensors, self._plan, self._transport, dtype=part.dtype, copy_from=companions)

    def agree(self, fault: str | None) -> None:
        """Tell every rank what went wrong on rank 0. Raises FolderError on all of them, or returns on all."""
        told = [fault]
        try:
            dist.broadcast_object_list(told, src=WRITER, group=self._group)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:160]
            raise FolderError(f"trainer rank {self._transport.rank} lost trainer rank {WRITER}: {why}") from None
        if told[0] is not None:
            raise FolderError(told[0])


def shared_out(inventories: Mapping[int, Inventory]) -> dict[int, Inventory]:
    """What each rank contributes: every parameter that ranks hold alike goes to the one with the least so far."""
    holders: dict[tuple, dict[int, list[Segment]]] = {}
    for rank in sorted(inventories):
        for segments in _by_parameter(inventories[rank]):
            boxes = tuple((segment.hf_name, segment.hf_box) for segment in segments)
            holders.setdefault(boxes, {})[rank] = segments
    shares: dict[int, list[Segment]] = {rank: [] for rank in inventories}
    filled = dict.fromkeys(inventories, 0)
    for held in sorted(holders.values(), key=lambda held: -_num_elements(next(iter(held.values())))):
        rank = min(held, key=lambda rank: (filled[rank], rank))
        shares[rank] += held[rank]
        filled[rank] += _num_elements(held[rank])
    return {rank: tuple(share) for rank, share in shares.items()}


def _by_parameter(inventory: Inventory) -> Iterable[list[Segment]]:
    by_name: dict[str, list[Segment]] = {}
    for segment in inventory:
        by_name.setdefault(segment.local_name, []).append(segment)
    return by_name.values()


def _num_elements(segments: list[Segment]) -> int:
    return sum(segment.hf_box.num_elements for segment in segments)
