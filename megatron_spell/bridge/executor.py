"""Carry out a plan: pack, move, land. Nothing is decided here, and nothing but packed bytes is exchanged.

Every rank derives the same order of messages from the plan, so both sides know what stands where in a buffer.
"""

from collections.abc import Iterator, Mapping
from math import prod

import torch

from megatron_spell.bridge.boxes import Box, BridgeError
from megatron_spell.bridge.planner import Bucket, Move, Plan
from megatron_spell.bridge.transports.base import Pending, Transport

DEFAULT_BUCKET_BYTES = 64 * 2**20
_NUM_SEND_BUFFERS = 2  # one is packed while the other is on its way


class Sender:
    """The part of a rank that only sends. `run` may be called again for every new version of the weights.

    `tensors` maps the local names of the rank's inventory to tensors of any dtype; they are read when `run` is called
    and converted to `dtype`, which all ranks of a plan must name alike, as they must `bucket_bytes`.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        tensors: Mapping[str, torch.Tensor],
        *,
        dtype: torch.dtype,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    ):
        if any(move.dst_rank == rank for move in plan.moves):
            raise BridgeError(f"rank {rank}: receives as well; use Receiver with sources")
        self._carrier = _Carrier(plan, rank, tensors, dtype, bucket_bytes)

    def run(self, transport: Transport) -> None:
        """Send all. Returns when every buffer was taken. Raises TransportError."""
        for _ in self._carrier.follow(transport):
            pass


class Receiver:
    """The part of a rank that receives, and that also sends when `sources` (its own tensors) are given."""

    def __init__(
        self,
        plan: Plan,
        rank: int,
        *,
        dtype: torch.dtype,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        sources: Mapping[str, torch.Tensor] | None = None,
    ):
        self._rank, self._dtype = rank, dtype
        self._carrier = _Carrier(plan, rank, sources or {}, dtype, bucket_bytes)
        self._landings = [move for move in plan.moves if move.dst_rank == rank]

    def into(self, transport: Transport, tensors: Mapping[str, torch.Tensor]) -> None:
        """Land in place, converted to each tensor's dtype; what no segment covers (padding) stays as it is.

        Raises TransportError; after it the tensors may be part old, part new.
        """
        for move in self._landings:
            _check_fits(tensors, move.dst_name, move.dst_box, self._rank)
        for move, values in self._carrier.follow(transport):
            tensors[move.dst_name].detach()[move.dst_box.index].copy_(values)

    def tensors(self, transport: Transport) -> Iterator[tuple[str, torch.Tensor]]:
        """(local name, new tensor of the wire dtype) as they complete.

        In memory are the tensors begun and not complete, and one bucket. The generator must be run to its end.
        """
        shapes, left = _extents(self._landings)
        begun: dict[str, torch.Tensor] = {}
        for move, values in self._carrier.follow(transport):
            name = move.dst_name
            if name not in begun:
                begun[name] = torch.empty(shapes[name], dtype=self._dtype)
            begun[name][move.dst_box.index].copy_(values)
            left[name] -= move.num_elements
            if not left[name]:
                yield name, begun.pop(name)


class _Carrier:
    """One rank's walk through the schedule."""

    def __init__(
        self, plan: Plan, rank: int, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, bucket_bytes: int
    ):
        schedule = plan.schedule(bucket_bytes, dtype.itemsize)
        self._buckets = [bucket for bucket in schedule if rank in (bucket.src_rank, bucket.dst_rank)]
        self._rank, self._tensors, self._dtype = rank, tensors, dtype
        for move in plan.moves:
            if move.src_rank == rank:
                _check_fits(tensors, move.src_name, move.src_box, rank)
        self._send_buffers = self._make_buffers(_NUM_SEND_BUFFERS, lambda b: b.src_rank == rank != b.dst_rank)
        self._receive_buffers = self._make_buffers(1, lambda b: b.dst_rank == rank != b.src_rank)

    def _make_buffers(self, count: int, concerns) -> list[torch.Tensor]:
        num_bytes = max((bucket.num_bytes for bucket in self._buckets if concerns(bucket)), default=0)
        return [torch.empty(num_bytes, dtype=torch.uint8) for _ in range(count)]

    def follow(self, transport: Transport) -> Iterator[tuple[Move, torch.Tensor]]:
        """Send what this rank sends and yield what it gets; values are good until the next is asked for."""
        if transport.rank != self._rank:
            raise BridgeError(f"the transport is that of rank {transport.rank}, the plan's part that of {self._rank}")
        under_way: list[Pending] = []
        num_sent = 0
        for bucket in self._buckets:
            if bucket.src_rank != self._rank:
                yield from self._receive(bucket, transport)
            elif bucket.dst_rank == self._rank:
                yield from ((move, self._source(move).to(self._dtype)) for _, move in bucket.moves)
            else:
                if len(under_way) == _NUM_SEND_BUFFERS:
                    under_way.pop(0).wait()
                buffer = self._send_buffers[num_sent % _NUM_SEND_BUFFERS][: bucket.num_bytes]
                num_sent += 1
                self._pack(bucket, buffer)
                under_way.append(transport.send(bucket.dst_rank, bucket.tag, buffer))
        for pending in under_way:
            pending.wait()

    def _receive(self, bucket: Bucket, transport: Transport) -> Iterator[tuple[Move, torch.Tensor]]:
        buffer = self._receive_buffers[0][: bucket.num_bytes]
        transport.receive(bucket.src_rank, bucket.tag, buffer)
        for offset, move in bucket.moves:
            yield move, self._window(buffer, offset, move.hf_box.shape)

    def _pack(self, bucket: Bucket, buffer: torch.Tensor) -> None:
        for offset, move in bucket.moves:
            self._window(buffer, offset, move.hf_box.shape).copy_(self._source(move))

    def _window(self, buffer: torch.Tensor, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        return buffer[offset : offset + prod(shape) * self._dtype.itemsize].view(self._dtype).view(shape)

    def _source(self, move: Move) -> torch.Tensor:
        return self._tensors[move.src_name].detach()[move.src_box.index]


def _check_fits(tensors: Mapping[str, torch.Tensor], name: str, box: Box, rank: int) -> None:
    if name not in tensors:
        raise BridgeError(f"rank {rank}: the plan needs {name}{box}, no such tensor was given")
    shape = tuple(tensors[name].shape)
    if len(shape) != len(box.stop) or any(a < b for a, b in zip(shape, box.stop)):
        raise BridgeError(f"rank {rank}: the plan needs {name}{box}, the tensor has shape {shape}")


def _extents(moves: list[Move]) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Of each target tensor: its shape (the smallest that holds all its boxes) and its number of elements to come."""
    shapes: dict[str, tuple[int, ...]] = {}
    left: dict[str, int] = {}
    for move in moves:
        stop = move.dst_box.stop
        shapes[move.dst_name] = tuple(max(a, b) for a, b in zip(shapes.get(move.dst_name, stop), stop))
        left[move.dst_name] = left.get(move.dst_name, 0) + move.num_elements
    return shapes, left
