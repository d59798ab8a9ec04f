"""What the executor prepares once: views of tensors and of buffers, so that one call packs or lands a bucket."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch

from megatron_spell.bridge.boxes import Box, BridgeError
from megatron_spell.bridge.planner import Bucket, Move
from megatron_spell.bridge.stacks import is_stack, members, views

Tensors = Mapping[str, torch.Tensor]


@dataclass(slots=True, eq=False)
class Packing:
    """Views of a rank's own tensors by bucket; good while the tensors stay at `addresses`."""

    addresses: tuple[int, ...]
    views: dict[int, list[torch.Tensor]] = field(default_factory=dict)


class Windows:
    """Views of byte buffers, by bucket and by where the buffer lies: a transport may show memory of its own."""

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype
        self._known: dict[tuple[int, int], list[torch.Tensor]] = {}

    def of(self, bucket: Bucket, buffer: torch.Tensor) -> list[torch.Tensor]:
        key = bucket.tag, buffer.data_ptr()
        if key not in self._known:
            self._known[key] = [view for offset, move in bucket.moves for view in self._views(offset, move, buffer)]
        return self._known[key]

    def _views(self, offset: int, move: Move, buffer: torch.Tensor) -> list[torch.Tensor]:
        shape = move.hf_box.shape
        window = buffer[offset : offset + prod(shape) * self._dtype.itemsize].view(self._dtype).view(shape)
        return list(window.unbind(0)) if apart(move) else [window]


def apart(move: Move) -> bool:
    """Whether the move is carried out one tensor of a stack at a time."""
    return is_stack(move.src_name) or is_stack(move.dst_name)


def copies(bucket: Bucket, tensors: Tensors, *, of_source: bool) -> list[torch.Tensor]:
    """Views of what the bucket's windows are filled from, or of what they land in, in the windows' order."""
    found: list[torch.Tensor] = []
    for _, move in bucket.moves:
        name, box = (move.src_name, move.src_box) if of_source else (move.dst_name, move.dst_box)
        found += views(tensors, name, box, apart=apart(move))
    return found


def addresses(tensors: Tensors, names: Sequence[str]) -> tuple[int, ...]:
    """Where the tensors lie: what was prepared is of no use once one has moved."""
    return tuple(tensors[name].data_ptr() for name in names)


def refuse_misfits(tensors: Tensors, places: Iterable[tuple[str, Box]], rank: int) -> None:
    """Raise BridgeError where a tensor that the plan speaks of is missing or too small."""
    for stack, whole in places:
        for name, box in members(stack, whole):
            if name not in tensors:
                raise BridgeError(f"rank {rank}: the plan needs {name}{box}, no such tensor was given")
            shape = tuple(tensors[name].shape)
            if len(shape) != len(box.stop) or any(a < b for a, b in zip(shape, box.stop)):
                raise BridgeError(f"rank {rank}: the plan needs {name}{box}, the tensor has shape {shape}")
