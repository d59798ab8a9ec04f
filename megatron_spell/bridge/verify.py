"""Compare weights across ranks and layouts by hashes of sampled boxes; no weight is moved."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import torch

from megatron_spell.bridge.boxes import Box, Inventory, Segment
from megatron_spell.bridge.hf_files import raw_bytes
from megatron_spell.bridge.planner import Plan
from megatron_spell.bridge.receipts import sampled_box
from megatron_spell.bridge.stacks import members, values

DEFAULT_PROBE_ELEMENTS = 4096


@dataclass(frozen=True, slots=True, order=True)
class Probe:
    """A box of a Hugging Face tensor that every holder has in one piece."""

    hf_name: str
    hf_box: Box

    def __str__(self) -> str:
        return f"{self.hf_name}{self.hf_box}"


def sample_probes(plan: Plan, seed: int, max_elements: int | None = DEFAULT_PROBE_ELEMENTS) -> tuple[Probe, ...]:
    """One probe out of every box the plan moves, of about `max_elements` at most; None takes the boxes whole.

    A function of plan and seed alone, so each side finds the same probes by itself.
    """
    boxes = sorted({(move.hf_name, move.hf_box) for move in plan.moves})
    return tuple(Probe(name, _sampled(name, box, seed, max_elements)) for name, box in boxes)


def digests(
    probes: Iterable[Probe], inventory: Inventory, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, str]:
    """Probe (as text) -> digest, for the probes that one holder's `tensors` (by local name) contain.

    Tensors may be missing, so a stream can be digested piece by piece. `dtype` is the common one that values are
    converted to, the wire's as a rule. Copies within one holder that differ give their digests joined by "+".
    """
    segments: dict[str, list[Segment]] = defaultdict(list)
    for segment in inventory:
        segments[segment.hf_name].append(segment)
    found: dict[str, str] = {}
    for probe in probes:
        own = [s for s in segments[probe.hf_name] if s.hf_box.contains(probe.hf_box)]
        places = [(s.local_name, s.to_local(probe.hf_box)) for s in own]
        here = [p for p in places if all(name in tensors for name, _ in members(*p))]
        if here:
            found[str(probe)] = "+".join(sorted({digest(values(tensors, *p), dtype) for p in here}))
    return found


def digest(tensor: torch.Tensor, dtype: torch.dtype) -> str:
    """Hash of a tensor's shape and of its elements as `dtype`."""
    spelled = blake2b(repr(tuple(tensor.shape)).encode(), digest_size=16)
    spelled.update(raw_bytes(tensor, dtype).tobytes())
    return spelled.hexdigest()


def compare(probes: Iterable[Probe], *sides: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """One line for each probe on which holders differ, or that a side does not hold; empty when all agree.

    A side maps its holders' names ("trainer rank 0") to their digests.
    """
    faults = []
    for key in sorted(map(str, probes)):
        for side in sides:
            if not any(key in found for found in side.values()):
                faults.append(f"{key}: held by none of {', '.join(side) or 'an empty side'}")
        holders: dict[str, list[str]] = defaultdict(list)
        for side in sides:
            for holder, found in side.items():
                if key in found:
                    holders[found[key]].append(holder)
        if len(holders) > 1 or any("+" in value for value in holders):
            views = "; ".join(f"{', '.join(names)}: {value}" for value, names in holders.items())
            faults.append(f"{key}: holders differ ({views})")
    return tuple(faults)


def _sampled(name: str, box: Box, seed: int, max_elements: int | None) -> Box:
    return box if max_elements is None else sampled_box(box, random.Random(f"{seed} {name} {box}"), max_elements)
