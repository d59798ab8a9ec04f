"""What the executor prepares once: views of tensors and of buffers, so that one call packs or lands a bucket."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

import torch

from megatron_spell.bridge.boxes import Box, BridgeError
from megatron_spell.bridge.planner import Bucket, Move
from megatron_spell.bridge.stacks import is_stack, members, one_by_one, views

Tensors = Mapping[str, torch.Tensor]


class Prepared:
    """Views of a rank's tensors by bucket, in the order of the buckets' windows.

    They are made once, and again when `follow` finds that a tensor lies elsewhere: what was prepared would then be read
    from, or written to, memory that nobody looks at any more.
    """

    def __init__(self, moves: Sequence[Move], rank: int, *, of_source: bool):
        self._rank, self._of_source = rank, of_source
        self._boxes = [(m.src_name, m.src_box) if of_source else (m.dst_name, m.dst_box) for m in moves]
        self._names = sorted({name for place in self._boxes for name, _ in members(*place)})
        self._places: tuple | None = None
        self._views: dict[int, list[torch.Tensor]] = {}
        self._rounds: dict[int, bool] = {}

    def follow(self, tensors: Tensors) -> None:
        """Compare where the tensors lie with where they lay. Raises BridgeError where one is missing or too small."""
        places = addresses(tensors, self._names)
        if places != self._places:
            refuse_misfits(tensors, self._boxes, self._rank)
            self._places, self._views, self._rounds = places, {}, {}

    def converts(self, tensors: Tensors, dtype: torch.dtype) -> bool:
        return any(tensors[name].dtype != dtype for name in self._names)

    def views(self, bucket: Bucket, tensors: Tensors) -> list[torch.Tensor]:
        if bucket.tag not in self._views:
            self._views[bucket.tag] = copies(bucket, tensors, of_source=self._of_source)
        return self._views[bucket.tag]

    def rounds(self, bucket: Bucket, tensors: Tensors, dtype: torch.dtype) -> bool:
        """Whether some view cannot hold every value of `dtype`."""
        if bucket.tag not in self._rounds:
            self._rounds[bucket.tag] = not all(_holds(view.dtype, dtype) for view in self.views(bucket, tensors))
        return self._rounds[bucket.tag]


def _holds(dtype: torch.dtype, values: torch.dtype) -> bool:
    """Whether every value of the one is one of the other."""
    return torch.promote_types(dtype, values) == dtype


def addresses(tensors: Tensors, names: Iterable[str]) -> tuple:
    """Where those of the tensors that exist lie, and how: views of them are of no use once that has changed."""
    found = (tensors[name] for name in names if name in tensors)
    return tuple((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) for tensor in found)


def copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy each source into its target, converting dtypes: one call for any number, few kernels on a GPU."""
    torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage] (what torch.optim uses)


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


def landing_places(bucket: Bucket) -> Iterator[tuple[str, Box]]:
    """Where each of the bucket's windows lands; one of a stack's tensors lands in a box of one index in a plain one."""
    for _, move in bucket.moves:
        yield from (one_by_one if apart(move) else members)(move.dst_name, move.dst_box)


def refuse_misfits(tensors: Tensors, places: Iterable[tuple[str, Box]], rank: int) -> None:
    """Raise BridgeError where a tensor that the plan speaks of is missing or too small."""
    for stack, whole in places:
        for name, box in members(stack, whole):
            if name not in tensors:
                raise BridgeError(f"rank {rank}: the plan needs {name}{box}, no such tensor was given")
            shape = tuple(tensors[name].shape)
            if len(shape) != len(box.stop) or any(a < b for a, b in zip(shape, box.stop)):
                raise BridgeError(f"rank {rank}: the plan needs {name}{box}, the tensor has shape {shape}")
