"""Carry out a plan without packing: targets copy straight out of the sources' own tensors.

For ranks that see each other's memory: an engine on the trainer's own GPU (CUDA IPC), where one copy at the device's
rate is all there is, or processes of one host whose tensors lie in shared memory. Beside the tensors nothing is held.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Protocol

import torch

from megatron_spell.bridge import receipts
from megatron_spell.bridge.boxes import BridgeError
from megatron_spell.bridge.compiled import addresses, apart, copy_all, refuse_misfits
from megatron_spell.bridge.executor import DEFAULT_BUCKET_BYTES
from megatron_spell.bridge.planner import Move, Plan
from megatron_spell.bridge.stacks import members, views
from megatron_spell.bridge.transports.base import Pending, Transport

Tensors = Mapping[str, torch.Tensor]


class Borrowed(Protocol):
    """A peer's tensors, to be read between `wait` and `release`."""

    def wait(self) -> Tensors: ...

    def release(self) -> None: ...


class LendingTransport(Transport, Protocol):
    """A transport that can show a rank's own tensors to others."""

    def expose(self, tensors: Tensors, peers: Collection[int]) -> None: ...

    def offer(self, dst: int, tag: int) -> Pending: ...

    def borrow(self, src: int, tag: int) -> Borrowed: ...


class DirectSender:
    """The part of a rank whose tensors are read. They must be of memory that the transport can show."""

    def __init__(
        self, plan: Plan, rank: int, tensors: Tensors, *, dtype: torch.dtype, bucket_bytes: int = DEFAULT_BUCKET_BYTES
    ):
        moves = [move for move in plan.moves if move.src_rank == rank]
        refuse_misfits(tensors, ((m.src_name, m.src_box) for m in moves), rank)
        names = {name for m in moves for name, _ in members(m.src_name, m.src_box)}
        self._tensors = {name: tensors[name] for name in sorted(names)}
        self._dtype, self._readers = dtype, sorted({move.dst_rank for move in moves})
        self._samples = _Samples(plan, rank, bucket_bytes, dtype)
        self._exposed_to: Transport | None = None
        self._addresses: tuple = ()

    def run(self, transport: LendingTransport, *, check: int | None = None) -> None:
        """Let every target read; returns when all have. `check` as for `executor.Sender.run`.

        Raises TransportError, WrongWeights, and BridgeError where a tensor has moved since it was shown.
        """
        where = addresses(self._tensors, list(self._tensors))
        if self._exposed_to is not transport:
            transport.expose(self._tensors, self._readers)
            self._exposed_to, self._addresses = transport, where
        elif where != self._addresses:
            raise BridgeError(f"rank {transport.rank}: a tensor has moved since it was shown; connect anew")
        for pending in [transport.offer(reader, 0) for reader in self._readers]:
            pending.wait()
        if check is not None:
            samples = self._samples.of(check)
            receipts.exchange(transport, samples, receipts.of_sources(samples, self._tensors, self._dtype), {})


class DirectReceiver:
    """The part of a rank that reads. `dtype` is that of the sources or of the targets: nothing is rounded twice."""

    def __init__(self, plan: Plan, rank: int, *, dtype: torch.dtype, bucket_bytes: int = DEFAULT_BUCKET_BYTES):
        self._rank, self._dtype = rank, dtype
        self._moves: dict[int, list[Move]] = defaultdict(list)
        for move in plan.moves:
            if move.dst_rank == rank:
                self._moves[move.src_rank].append(move)
        self._samples = _Samples(plan, rank, bucket_bytes, dtype)
        self._copies: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        places = [place for moves in self._moves.values() for m in moves for place in members(m.dst_name, m.dst_box)]
        self._names = sorted({name for name, _ in places})
        self._for: tuple[Transport, tuple] | None = None

    def into(self, transport: LendingTransport, tensors: Tensors, *, check: int | None = None) -> None:
        """Land in place. `check` as for `executor.Receiver.into`. Raises TransportError, WrongWeights."""
        where = addresses(tensors, self._names)
        if self._for is None or self._for[0] is not transport or self._for[1] != where:
            places = ((m.dst_name, m.dst_box) for moves in self._moves.values() for m in moves)
            refuse_misfits(tensors, places, self._rank)
            self._copies, self._for = {}, (transport, where)
        borrowed = {source: transport.borrow(source, 0) for source in self._moves}
        for source, lent in borrowed.items():
            theirs = lent.wait()
            if source not in self._copies:
                self._copies[source] = self._pairs(source, tensors, theirs)
            copy_all(*self._copies[source])
            lent.release()
        if check is not None:
            samples = self._samples.of(check)
            receipts.exchange(transport, samples, {}, receipts.of_targets(samples, tensors, self._dtype))

    def _pairs(self, source: int, tensors: Tensors, theirs: Tensors) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        own, read = [], []
        for move in self._moves[source]:
            own += views(tensors, move.dst_name, move.dst_box, apart=apart(move))
            read += views(theirs, move.src_name, move.src_box, apart=apart(move))
        for mine, other in zip(own, read, strict=True):
            if self._dtype not in (mine.dtype, other.dtype):
                raise BridgeError(
                    f"rank {self._rank}: {other.dtype} cannot land as {mine.dtype} by way of {self._dtype}"
                )
        return own, read


class _Samples:
    """What of a rank's share is compared: as of the buckets that it would be sent in."""

    def __init__(self, plan: Plan, rank: int, bucket_bytes: int, dtype: torch.dtype):
        schedule = plan.schedule(bucket_bytes, dtype.itemsize)
        self._buckets = [bucket for bucket in schedule if rank in (bucket.src_rank, bucket.dst_rank)]
        if any(bucket.src_rank == bucket.dst_rank for bucket in self._buckets):
            raise BridgeError(f"rank {rank}: sends to itself; use Receiver with sources")

    def of(self, check: int) -> list[receipts.Sample]:
        return [receipts.sample(bucket, check) for bucket in self._buckets]
