"""After a refresh both sides hash a sample of every bucket and compare: what landed is what was meant.

The sender hashes its own tensor, the receiver what has landed, so a fault of packing, of the way or of landing shows.
Receivers send their digests to the senders, senders answer with a verdict; nobody goes on with wrong weights.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isqrt

import torch

from megatron_spell.bridge.boxes import Box, BridgeError
from megatron_spell.bridge.compiled import apart
from megatron_spell.bridge.hf_files import raw_bytes
from megatron_spell.bridge.planner import Bucket, Move
from megatron_spell.bridge.stacks import values
from megatron_spell.bridge.transports.base import Transport

SAMPLE_ELEMENTS = 4096
DIGEST_BYTES = 16
RECEIPTS, VERDICT = 1, 2  # tags of the two control messages of a pair of ranks; a verdict has a byte for each sample
GOOD, BAD = 1, 0


class WrongWeights(BridgeError):
    """What landed is not what was sent; one line naming the ranks, the tensor and the box."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The part of the bucket `tag` that is compared: `move` is a part of its move number `number`."""

    tag: int
    number: int
    move: Move


def sample(bucket: Bucket, seed: int) -> Sample:
    """A part of one of the bucket's moves, the same for every caller, another one for every seed."""
    draw = random.Random(f"{seed} {bucket.tag}")
    number = draw.randrange(len(bucket.moves))
    move = bucket.moves[number][1]
    return Sample(bucket.tag, number, move.part(sampled_box(move.hf_box, draw, SAMPLE_ELEMENTS)))


def sampled_box(box: Box, draw: random.Random, max_elements: int) -> Box:
    """A drawn box of roughly square shape and of about `max_elements` at most inside `box`."""
    if box.num_elements <= max_elements:
        return box
    *outer, width = box.shape
    columns = min(width, max_elements if not outer else isqrt(max_elements))
    sizes, left = [columns], max_elements // columns
    for size in reversed(outer):
        sizes.insert(0, min(size, max(1, left)))
        left //= sizes[0]
    start = tuple(a + draw.randint(0, whole - size) for a, whole, size in zip(box.start, box.shape, sizes))
    return Box(start, tuple(a + size for a, size in zip(start, sizes)))


def of_source(sample: Sample, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> bytes:
    return digest(sample, values(tensors, sample.move.src_name, sample.move.src_box), dtype)


def of_target(sample: Sample, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> bytes:
    return digest(sample, values(tensors, sample.move.dst_name, sample.move.dst_box), dtype)


def of_arrival(sample: Sample, bucket: Bucket, windows: Sequence[torch.Tensor]) -> bytes:
    """Of the bucket's views as they came, where what they land in cannot be read (packed weights)."""
    counts = [move.hf_box.shape[0] if apart(move) else 1 for _, move in bucket.moves]
    first, whole = sum(counts[: sample.number]), bucket.moves[sample.number][1]
    box = sample.move.hf_box.moved(whole.hf_box.start, (0,) * len(whole.hf_box.start))
    if not apart(whole):
        return digest(sample, windows[first][box.index], windows[first].dtype)
    found = [windows[first + i][box.index[1:]] for i in range(box.start[0], box.stop[0])]
    return digest(sample, torch.stack(found), found[0].dtype)


def digest(sample: Sample, values: torch.Tensor, dtype: torch.dtype) -> bytes:
    """Hash of what the sample is called and of its elements as `dtype`: two sides of two minds about a place differ."""
    spelled = blake2b(f"{sample.move.hf_name}{sample.move.hf_box}".encode(), digest_size=DIGEST_BYTES)
    spelled.update(raw_bytes(values, dtype))
    return spelled.digest()


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
    places = [f"{s.move.hf_name}{s.move.hf_box}" for s in wrong]
    return [f"what landed on rank {dst} is not what rank {src} sent: {', '.join(places[:4])}"] if wrong else []


def _by_peer(samples: Sequence[Sample], rank: int, *, sending: bool) -> dict[int, list[Sample]]:
    found: dict[int, list[Sample]] = defaultdict(list)
    for each in samples:
        own, peer = (each.move.src_rank, each.move.dst_rank) if sending else (each.move.dst_rank, each.move.src_rank)
        if own == rank:
            found[peer].append(each)
    return found
