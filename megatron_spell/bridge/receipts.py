"""After a refresh both sides hash a sample of every bucket and compare: what landed is what was meant.

The sender hashes its own tensor, the receiver what has landed, so a fault of packing, of the way or of landing shows.
Receivers send their digests to the senders, senders answer with a verdict; nobody goes on with wrong weights.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import isqrt, prod
from typing import NamedTuple

import torch

from megatron_spell.bridge.boxes import Box, BridgeError
from megatron_spell.bridge.compiled import apart, copy_all
from megatron_spell.bridge.hf_files import raw_bytes
from megatron_spell.bridge.planner import Bucket, Move
from megatron_spell.bridge.stacks import is_stack, member
from megatron_spell.bridge.transports.base import Transport

SAMPLE_ELEMENTS = 256
SAMPLES_AT_A_TIME = 512  # a quarter of a megabyte of bfloat16
DIGEST_BYTES = 16
RECEIPTS, VERDICT = 1, 2  # tags of the two control messages of a pair of ranks; a verdict has a byte for each sample
GOOD, BAD = 1, 0


class WrongWeights(BridgeError):
    """What landed is not what was sent; one line naming the ranks, the tensor and the box."""


class Sample(NamedTuple):
    """The part of the bucket `tag` that is compared: of its move number `number`, `sizes` elements from `offset` on.

    Of a move that is carried out one tensor at a time, a part of one of the tensors.
    """

    tag: int
    number: int
    move: Move
    offset: tuple[int, ...]
    sizes: tuple[int, ...]

    def within(self, box: Box) -> Box:
        """The part where the move's whole is `box`."""
        start = tuple(a + at for a, at in zip(box.start, self.offset))
        return Box(start, tuple(a + size for a, size in zip(start, self.sizes)))

    def view(self, tensors: Mapping[str, torch.Tensor], name: str, box: Box) -> torch.Tensor:
        """The part of the tensors that have the move's whole at `box` of `name`."""
        index = tuple([slice(a + at, a + at + n) for a, at, n in zip(box.start, self.offset, self.sizes)])
        if is_stack(name):
            return tensors[member(name, index[0].start)][index[1:]]
        return tensors[name][index]

    def __str__(self) -> str:
        return f"{self.move.hf_name}{self.within(self.move.hf_box)}"


def sample(bucket: Bucket, seed: int) -> Sample:
    """A part of one of the bucket's moves, the same for every caller, another one for every seed."""
    bits, number = divmod(_mixed(seed, bucket.tag), len(bucket.moves))
    move = bucket.moves[number][1]
    shape, offset = move.hf_box.shape, []
    sizes = _sizes(shape, SAMPLE_ELEMENTS, apart(move))
    for whole, size in zip(shape, sizes):
        bits, at = divmod(bits, whole - size + 1)
        offset.append(at)
    return Sample(bucket.tag, number, move, tuple(offset), sizes)


def sampled_box(box: Box, draw: random.Random, max_elements: int) -> Box:
    """A drawn box of roughly square shape and of about `max_elements` at most inside `box`."""
    sizes = _sizes(box.shape, max_elements, False)
    start = tuple(a + draw.randint(0, whole - size) for a, whole, size in zip(box.start, box.shape, sizes))
    return Box(start, tuple(a + size for a, size in zip(start, sizes)))


@torch.no_grad()
def of_sources(samples: Iterable[Sample], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[int, bytes]:
    """Tag -> digest of what was meant to be sent."""
    return digests([(s, s.view(tensors, s.move.src_name, s.move.src_box)) for s in samples], dtype)


@torch.no_grad()
def of_targets(samples: Iterable[Sample], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[int, bytes]:
    """Tag -> digest of what lies where it was meant to land."""
    return digests([(s, s.view(tensors, s.move.dst_name, s.move.dst_box)) for s in samples], dtype)


def of_arrival(sample: Sample, bucket: Bucket, windows: Sequence[torch.Tensor]) -> bytes:
    """Of the bucket's views as they came, where what they land in cannot be read (packed weights)."""
    counts = [move.hf_box.shape[0] if apart(move) else 1 for _, move in bucket.moves]
    first, index = sum(counts[: sample.number]), sample.within(Box.whole(sample.move.hf_box.shape)).index
    window = windows[first + index[0].start][index[1:]] if apart(sample.move) else windows[first][index]
    return digests([(sample, window)], window.dtype)[sample.tag]


def digests(samples: Sequence[tuple[Sample, torch.Tensor]], dtype: torch.dtype) -> dict[int, bytes]:
    """Tag -> hash of what a sample is called and of its elements as `dtype`: sides of two minds about a place differ.

    Samples come to the CPU many at a time.
    """
    found: dict[int, bytes] = {}
    for at in range(0, len(samples), SAMPLES_AT_A_TIME):
        found |= _digests(samples[at : at + SAMPLES_AT_A_TIME], dtype)
    return found


def _digests(samples: Sequence[tuple[Sample, torch.Tensor]], dtype: torch.dtype) -> dict[int, bytes]:
    sizes = [values.numel() for _, values in samples]
    together = torch.empty(sum(sizes), dtype=dtype, device=samples[0][1].device)
    parts = [part.view(values.shape) for part, (_, values) in zip(together.split(sizes), samples)]
    copy_all(parts, [values for _, values in samples])
    content, at, found = raw_bytes(together, dtype).tobytes(), 0, {}
    for (each, _), size in zip(samples, sizes):
        stop = at + size * dtype.itemsize
        key = _key(each.move.hf_name, each.move.hf_box.start) + str(each.offset).encode()
        found[each.tag], at = blake2b(content[at:stop], digest_size=DIGEST_BYTES, key=key).digest(), stop
    return found


@lru_cache(maxsize=65536)
def _key(hf_name: str, start: tuple[int, ...]) -> bytes:
    """Of the place of a move, 16 bytes; with an offset it stays below the 64 that blake2b takes as a key."""
    return blake2b(f"{hf_name}{start}".encode(), digest_size=DIGEST_BYTES).digest()


def _mixed(seed: int, tag: int) -> int:
    """64 bits that depend on both (the finaliser of SplitMix64)."""
    bits = (seed * 0x9E3779B97F4A7C15 + (tag + 1) * 0xD1B54A32D192ED03) % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return bits ^ bits >> 31


@lru_cache(maxsize=4096)
def _sizes(shape: tuple[int, ...], max_elements: int, one_index: bool) -> tuple[int, ...]:
    """Of a sample, roughly square; with `one_index` of a single index of dim 0."""
    if one_index:
        return 1, *_sizes(shape[1:], max_elements, False)
    if prod(shape) <= max_elements:
        return shape
    *outer, width = shape
    columns = min(width, max_elements if not outer else isqrt(max_elements))
    sizes, left = [columns], max_elements // columns
    for size in reversed(outer):
        sizes.insert(0, min(size, max(1, left)))
        left //= sizes[0]
    return tuple(sizes)


def exchange(
    transport: Transport, samples: Sequence[Sample], sent: Mapping[int, bytes], received: Mapping[int, bytes]
) -> None:
    """Compare with every peer; returns on all ranks or raises WrongWeights on those that a fault concerns.

    `sent` and `received` are this rank's digests by bucket. Nobody waits before having said its own.
    """
    rank = transport.rank
    to, came_from = _by_peer(samples, rank, sending=True), _by_peer(samples, rank, sending=False)
    for src, own in came_from.items():
        transport.post(src, RECEIPTS, b"".join(received[s.tag] for s in own))
    faults = [fault for dst, own in to.items() for fault in _judge(transport, dst, own, sent)]
    for src, own in came_from.items():
        verdict = transport.collect(src, VERDICT, len(own))
        faults += _fault(src, rank, [s for s, each in zip(own, verdict, strict=True) if each != GOOD])
    if faults:
        raise WrongWeights("; ".join(faults[:4]))


def _judge(transport: Transport, dst: int, own: Sequence[Sample], sent: Mapping[int, bytes]) -> list[str]:
    told = transport.collect(dst, RECEIPTS, DIGEST_BYTES * len(own))
    pairs = zip(own, (told[at : at + DIGEST_BYTES] for at in range(0, len(told), DIGEST_BYTES)), strict=True)
    verdict = [GOOD if sent[s.tag] == theirs else BAD for s, theirs in pairs]
    transport.post(dst, VERDICT, bytes(verdict))
    return _fault(transport.rank, dst, [s for s, each in zip(own, verdict, strict=True) if each != GOOD])


def _fault(src: int, dst: int, wrong: Sequence[Sample]) -> list[str]:
    places = [str(each) for each in wrong]
    return [f"what landed on rank {dst} is not what rank {src} sent: {', '.join(places[:4])}"] if wrong else []


def _by_peer(samples: Sequence[Sample], rank: int, *, sending: bool) -> dict[int, list[Sample]]:
    found: dict[int, list[Sample]] = defaultdict(list)
    for each in samples:
        own, peer = (each.move.src_rank, each.move.dst_rank) if sending else (each.move.dst_rank, each.move.src_rank)
        if own == rank:
            found[peer].append(each)
    return found
