"""Carry out a plan: pack, move, land. Nothing is decided here, and nothing but packed bytes is exchanged.

Every rank derives the same order of messages from the plan, so both sides know what stands where in a buffer. What can
be prepared is prepared once (compiled.py); a refresh then costs a few calls for each bucket, however many tensors.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from megatron_spell.bridge import receipts
from megatron_spell.bridge.boxes import Box, BridgeError
from megatron_spell.bridge.compiled import Prepared, Windows, copy_all, landing_places
from megatron_spell.bridge.planner import Bucket, Plan
from megatron_spell.bridge.stacks import members
from megatron_spell.bridge.transports.base import NUM_SEND_BUFFERS, Arrival, Pending, Transport

DEFAULT_BUCKET_BYTES = 64 * 2**20

Tensors = Mapping[str, torch.Tensor]


class Sender:
    """The part of a rank that only sends. `run` may be called again for every new version of the weights.

    `tensors` maps the local names of the rank's inventory to tensors of any dtype; they are read when `run` is called
    and converted to `dtype`, which all ranks of a plan must name alike, as they must `bucket_bytes`. Beside the tensors
    at most two buckets are in memory.
    """

    def __init__(
        self, plan: Plan, rank: int, tensors: Tensors, *, dtype: torch.dtype, bucket_bytes: int = DEFAULT_BUCKET_BYTES
    ):
        if any(move.dst_rank == rank for move in plan.moves):
            raise BridgeError(f"rank {rank}: receives as well; use Receiver with sources")
        self._carrier = _Carrier(plan, rank, tensors, dtype, bucket_bytes)

    def run(self, transport: Transport, *, check: int | None = None) -> None:
        """Send all. Returns when every buffer was taken.

        With `check`, a number that both sides name alike and that changes from run to run, a sample of every bucket is
        compared after landing. Raises TransportError, WrongWeights.
        """
        for _ in self._carrier.follow(transport):
            pass
        if check is not None:
            self._carrier.compare(transport, self._carrier.samples(check), {})


class Receiver:
    """The part of a rank that receives, and that also sends when `sources` (its own tensors) are given.

    Beside what it lands in at most two buckets are in memory, none where the transport shows the sender's memory.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        *,
        dtype: torch.dtype,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        sources: Tensors | None = None,
    ):
        self._dtype = dtype
        self._carrier = _Carrier(plan, rank, sources or {}, dtype, bucket_bytes)
        self._landings = [move for move in plan.moves if move.dst_rank == rank]
        self._prepared = Prepared(self._landings, rank, of_source=False)

    def into(self, transport: Transport, tensors: Tensors, *, check: int | None = None) -> None:
        """Land in place, converted to each tensor's dtype; what no segment covers (padding) stays as it is.

        `check` as for `Sender.run`; what is compared is what the tensors then hold, but what came where a bucket
        lands in a dtype that cannot hold the wire's. Raises TransportError and WrongWeights; after either the tensors
        may be part old, part new.
        """
        carrier, prepared = self._carrier, self._prepared
        prepared.follow(tensors)
        samples, found = carrier.samples(check), {}
        wanted = self._by_bucket(samples)
        for bucket, windows in carrier.follow(transport):
            copy_all(prepared.views(bucket, tensors), windows)
            if bucket.tag in wanted and prepared.rounds(bucket, tensors, self._dtype):
                found[bucket.tag] = receipts.of_arrival(wanted.pop(bucket.tag), bucket, windows)
        if check is not None:
            found |= receipts.of_targets(wanted.values(), tensors, self._dtype)
            carrier.compare(transport, samples, found)

    def boxes(self, transport: Transport, *, check: int | None = None) -> Iterator[tuple[str, Box, torch.Tensor]]:
        """(local name, box, values of the wire dtype) as they come, stacks apart; values are good until the next.

        The generator must be run to its end. `check` as for `Sender.run`; what is compared is what came.
        """
        samples, found = self._carrier.samples(check), {}
        wanted = self._by_bucket(samples)
        for bucket, windows in self._carrier.follow(transport):
            if bucket.tag in wanted:
                found[bucket.tag] = receipts.of_arrival(wanted[bucket.tag], bucket, windows)
            for (name, box), window in zip(landing_places(bucket), windows, strict=True):
                yield name, box, window.view(box.shape)
        if check is not None:
            self._carrier.compare(transport, samples, found)

    def tensors(self, transport: Transport, *, check: int | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """(local name, new tensor of the wire dtype) as they complete.

        In memory are the tensors begun and not complete, and two buckets. The generator must be run to its end.
        """
        shapes, left = _extents(self._landings)
        begun: dict[str, torch.Tensor] = {}
        for name, box, values in self.boxes(transport, check=check):
            if name not in begun:
                begun[name] = torch.empty(shapes[name], dtype=self._dtype, device=values.device)
            begun[name][box.index].copy_(values)
            left[name] -= box.num_elements
            if not left[name]:
                yield name, begun.pop(name)

    def _by_bucket(self, samples: Sequence[receipts.Sample]) -> dict[int, receipts.Sample]:
        """Those of what this rank receives."""
        return {each.tag: each for each in samples if each.move.dst_rank == self._carrier.rank}


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A bucket under way and what it waits for; one that stays on its rank waits for nothing and is `kept`."""

    bucket: Bucket
    pending: Pending | None = None
    arrival: Arrival | None = None
    kept: list[torch.Tensor] = field(default_factory=list)


class _Carrier:
    """One rank's walk through the schedule."""

    def __init__(self, plan: Plan, rank: int, tensors: Tensors, dtype: torch.dtype, bucket_bytes: int):
        schedule = plan.schedule(bucket_bytes, dtype.itemsize)
        self.rank, self._dtype, self._sources = rank, dtype, tensors
        self._buckets = [bucket for bucket in schedule if rank in (bucket.src_rank, bucket.dst_rank)]
        self._prepared = Prepared([m for m in plan.moves if m.src_rank == rank], rank, of_source=True)
        self._prepared.follow(tensors)
        self._converts = False
        self._transport: Transport | None = None
        self._buffers: list[torch.Tensor] = []
        self._windows = Windows(dtype)

    def follow(self, transport: Transport) -> Iterator[tuple[Bucket, list[torch.Tensor]]]:
        """Send what this rank sends and yield each bucket it gets, as views; they are good until the next is asked for.

        Buckets are begun in their order and ended in the same, with two under way: each has one of the two buffers.
        """
        self._prepare(transport)
        under_way: deque[_Step] = deque()
        for number, bucket in enumerate(self._buckets):
            if len(under_way) == NUM_SEND_BUFFERS:
                yield from self._end(under_way.popleft())
            under_way.append(self._begin(bucket, number % NUM_SEND_BUFFERS, transport))
        while under_way:
            yield from self._end(under_way.popleft())

    def samples(self, check: int | None) -> list[receipts.Sample]:
        """What of each bucket that this rank sends or receives is compared."""
        if check is None:
            return []
        return [receipts.sample(bucket, check) for bucket in self._buckets if bucket.src_rank != bucket.dst_rank]

    def compare(self, transport: Transport, samples: Sequence[receipts.Sample], received: Mapping[int, bytes]) -> None:
        own = [each for each in samples if each.move.src_rank == self.rank]
        receipts.exchange(transport, samples, receipts.of_sources(own, self._sources, self._dtype), received)

    def _prepare(self, transport: Transport) -> None:
        """Views of sources and buffers are made once, and again when a tensor has moved or the transport is another."""
        if transport.rank != self.rank:
            raise BridgeError(f"the transport is that of rank {transport.rank}, the plan's part that of {self.rank}")
        self._prepared.follow(self._sources)
        converts = self._prepared.converts(self._sources, self._dtype)
        if self._transport is not transport or self._converts != converts:
            self._converts = converts
            self._windows = Windows(self._dtype)
            self._buffers = transport.send_buffers(self._buffer_bytes(transport))
            self._transport = transport
            if len(self._buffers) != NUM_SEND_BUFFERS:
                raise BridgeError(f"the transport gave {len(self._buffers)} buffers, {NUM_SEND_BUFFERS} are allowed")

    def _buffer_bytes(self, transport: Transport) -> int:
        return max((b.num_bytes for b in self._buckets if self._needs_buffer(b, transport)), default=0)

    def _needs_buffer(self, bucket: Bucket, transport: Transport) -> bool:
        if bucket.src_rank == bucket.dst_rank:
            return self._converts
        return bucket.src_rank == self.rank or not transport.brings_memory

    def _begin(self, bucket: Bucket, slot: int, transport: Transport) -> _Step:
        buffer = self._buffers[slot][: bucket.num_bytes]
        if bucket.src_rank == bucket.dst_rank:
            return _Step(bucket, kept=self._kept(bucket, buffer))
        if bucket.dst_rank == self.rank:
            room = None if transport.brings_memory else buffer
            return _Step(bucket, arrival=transport.receive(bucket.src_rank, bucket.tag, room, bucket.num_bytes))
        copy_all(self._windows.of(bucket, buffer), self._prepared.views(bucket, self._sources))
        return _Step(bucket, pending=transport.send(bucket.dst_rank, bucket.tag, buffer))

    def _end(self, step: _Step) -> Iterator[tuple[Bucket, list[torch.Tensor]]]:
        if step.pending is not None:
            step.pending.wait()
        elif step.arrival is not None:
            yield step.bucket, self._windows.of(step.bucket, step.arrival.wait())
            step.arrival.release()
        else:
            yield step.bucket, step.kept

    def _kept(self, bucket: Bucket, buffer: torch.Tensor) -> list[torch.Tensor]:
        """What stays on its rank, rounded to the wire's dtype like what travels, so that replicas end up equal."""
        held = self._prepared.views(bucket, self._sources)
        if not self._converts:
            return held
        windows = self._windows.of(bucket, buffer)
        copy_all(windows, held)
        return windows


def tensors_to_come(plan: Plan, rank: int, bucket_bytes: int, itemsize: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the order in which `Receiver.tensors` of a rank yields them."""
    shapes, left = _extents(move for move in plan.moves if move.dst_rank == rank)
    order = []
    for bucket in plan.schedule(bucket_bytes, itemsize):
        for name, box in landing_places(bucket) if bucket.dst_rank == rank else ():
            left[name] -= box.num_elements
            order += [] if left[name] else [name]
    return {name: shapes[name] for name in order}


def _extents(moves) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Of each target tensor: its shape (the smallest that holds all its boxes) and its number of elements to come."""
    shapes: dict[str, tuple[int, ...]] = {}
    left: dict[str, int] = {}
    for move in moves:
        for name, box in members(move.dst_name, move.dst_box):
            shapes[name] = tuple(max(a, b) for a, b in zip(shapes.get(name, box.stop), box.stop))
            left[name] = left.get(name, 0) + box.num_elements
    return shapes, left
