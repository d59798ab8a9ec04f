"""What a refresh costs a rank in Python: the executor on tensors of no weight and a transport that moves nothing."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from megatron_spell.bridge import receipts
from megatron_spell.bridge.compiled import apart
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places, engine_shapes
from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.inventory import trainer_inventory, trainer_shapes
from megatron_spell.bridge.planner import Plan, plan
from megatron_spell.bridge.transports.base import plain_buffers
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh

Tensors = dict[str, torch.Tensor]
DTYPE = torch.bfloat16
BUCKET_BYTES = 256 * 2**20  # the default of bridge.bucket_mib; links share it
LAYOUTS = (
    (Mesh(tp=4, pp=2, dp=4, ep=8, etp=1), EngineMesh(tp=4), 4),
    (Mesh(tp=2, pp=4, dp=8, ep=8, etp=1), EngineMesh(tp=2), 8),
    (Mesh(tp=4, pp=2, dp=4, ep=8, etp=1), EngineMesh(tp=8, expert_parallel=True), 1),
)


@dataclass
class Cost:
    """Of the dearest rank of one side, over all its links."""

    layout: str
    side: str
    num_buckets: int
    num_copies: int
    plan_s: float
    cold_s: float = 0.0
    warm_s: list[float] = field(default_factory=list)


class NullTransport:
    """Moves nothing and agrees to everything."""

    brings_memory = False

    def __init__(self, rank: int, buffers: list[torch.Tensor]):
        self.rank, self._buffers = rank, buffers
        self.told: dict[int, list[bytes]] = {}  # by target: the digests that this rank has of what it sent

    def send_buffers(self, num_bytes: int) -> list[torch.Tensor]:
        return [buffer[:num_bytes] for buffer in self._buffers]

    def send(self, dst: int, tag: int, buffer: torch.Tensor) -> "NullTransport":
        return self

    def receive(self, src: int, tag: int, buffer: torch.Tensor, num_bytes: int) -> "_Arrived":
        return _Arrived(buffer)

    def post(self, dst: int, tag: int, message: bytes) -> None:
        """Nobody listens."""

    def collect(self, src: int, tag: int, num_bytes: int) -> bytes:
        return b"".join(self.told.pop(src)) if tag == receipts.RECEIPTS else bytes([receipts.GOOD]) * num_bytes

    def wait(self) -> None:
        """It is there."""


class _Arrived:
    def __init__(self, buffer: torch.Tensor):
        self._buffer = buffer

    def wait(self) -> torch.Tensor:
        return self._buffer

    def release(self) -> None:
        """Nobody waits."""


def costs(shape: ModelShape, repeats: int) -> list[Cost]:
    buffers = plain_buffers(BUCKET_BYTES)
    return [cost for layout in LAYOUTS for cost in _costs(shape, *layout, repeats, buffers)]


def _costs(
    shape: ModelShape, mesh: Mesh, engine: EngineMesh, num_engines: int, repeats: int, buffers
) -> Iterator[Cost]:
    first, places = mesh.world_size, engine_places(shape, engine)
    sources = {rank: trainer_inventory(shape, mesh, rank) for rank in range(first)}
    own = [engine_inventory(shape, place) for place in places]
    began = time.process_time()
    moves = plan(sources, {first + i: own[i % len(own)] for i in range(num_engines * len(own))})
    plan_s = time.process_time() - began
    links = [moves.into(range(first + i * len(own), first + (i + 1) * len(own))) for i in range(num_engines)]
    workers = range(first, first + num_engines * len(own))
    for side, ranks in (("trainer", range(first)), ("worker", workers)):
        rank = _dearest(moves, ranks)
        sizes = (
            trainer_shapes(shape, mesh, rank)
            if rank < first
            else engine_shapes(shape, places[(rank - first) % len(own)])
        )
        tensors = {name: torch.zeros(1, dtype=DTYPE).expand(size) for name, size in sizes.items()}
        cost = Cost(f"{mesh} to {num_engines} x {engine}", side, 0, 0, plan_s)
        transport = NullTransport(rank, buffers)
        with _nothing_copied(transport):
            _measure(
                cost,
                [link for link in links if rank in link.ranks],
                tensors,
                transport,
                BUCKET_BYTES // num_engines,
                repeats,
            )
        yield cost


def _measure(
    cost: Cost, links: list[Plan], tensors: Tensors, transport: NullTransport, bucket_bytes: int, repeats: int
) -> None:
    began = time.process_time()
    runs = [_run(cost.side, link, tensors, bucket_bytes, transport) for link in links]
    for run in runs:
        run(0)
    cost.cold_s = time.process_time() - began
    for version in range(1, repeats + 1):
        began = time.process_time()
        for run in runs:
            run(version)
        cost.warm_s.append(time.process_time() - began)
    for link in links:
        for bucket in link.schedule(bucket_bytes, DTYPE.itemsize):
            if transport.rank in (bucket.src_rank, bucket.dst_rank):
                cost.num_buckets += 1
                cost.num_copies += sum(m.hf_box.shape[0] if apart(m) else 1 for _, m in bucket.moves)


def _run(side: str, link: Plan, tensors: Tensors, bucket_bytes: int, transport: NullTransport) -> Callable[[int], None]:
    """One refresh over one link, given the version."""
    settings = {"dtype": DTYPE, "bucket_bytes": bucket_bytes}
    if side == "trainer":
        sender = Sender(link, transport.rank, tensors, **settings)
        return lambda version: sender.run(transport, check=version)
    receiver = Receiver(link, transport.rank, **settings)
    return lambda version: receiver.into(transport, tensors, check=version)


@contextmanager
def _nothing_copied(transport: NullTransport) -> Iterator[None]:
    """Meanwhile no bytes move, and what a sender hashes is what `transport` says its peers hashed."""
    copy, hashed = torch._foreach_copy_, receipts.of_sources

    def telling(samples: list[receipts.Sample], tensors: Tensors, dtype: torch.dtype) -> dict[int, bytes]:
        digests = hashed(samples, tensors, dtype)
        for each in samples:
            transport.told.setdefault(each.move.dst_rank, []).append(digests[each.tag])
        return digests

    torch._foreach_copy_, receipts.of_sources = lambda *_: None, telling
    try:
        yield
    finally:
        torch._foreach_copy_, receipts.of_sources = copy, hashed


def _dearest(moves: Plan, ranks: range) -> int:
    """The rank with the most single copies."""
    work: Counter[int] = Counter()
    for move in moves.moves:
        for rank in {move.src_rank, move.dst_rank}:
            work[rank] += move.hf_box.shape[0] if apart(move) else 1
    return max((rank for rank in ranks if rank in work), key=lambda rank: work[rank])
