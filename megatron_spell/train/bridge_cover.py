"""Is everything that engines hold brought exactly once, from where it is? Counted anew, without the planner's help."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from megatron_spell.bridge.boxes import Box, Inventory, Segment
from megatron_spell.bridge.inventory import checkpoint_inventory
from megatron_spell.bridge.planner import Move, Plan
from megatron_spell.bridge.stacks import members
from megatron_spell.config.model_shape import ModelShape

Held = Mapping[int, Mapping[str, Sequence[Segment]]]


def cover_faults(moves: Plan, sources: Mapping[int, Inventory], targets: Mapping[int, Inventory]) -> list[str]:
    """One line for each target tensor that is not filled exactly once and each move that takes or puts what it should
    not; empty when all is well.

    Elements are counted for each target tensor and its boxes compared in pairs. A move's two ends are looked up in the
    inventories: both must lie in a segment that says the same of the Hugging Face tensor.
    """
    held, needed = _by_name(sources), _by_name(targets)
    faults = [*_misread(moves.moves, held), *_misplaced(moves.moves, needed)]
    landing: dict[tuple[int, str], list[Box]] = defaultdict(list)
    for move in moves.moves:
        landing[move.dst_rank, move.dst_name].append(move.dst_box)
    for rank, tensors in needed.items():
        for name, segments in tensors.items():
            wanted = sum(segment.local_box.num_elements for segment in segments)
            faults += _miscounted(f"target rank {rank}: {name}", landing[rank, name], wanted)
    return faults


def covered_tensors(moves: Iterable[Move], shape: ModelShape) -> set[str]:
    """The Hugging Face tensors of which the moves bring every element."""
    brought: dict[str, set[Box]] = defaultdict(set)
    for move in moves:
        brought[move.hf_name].add(move.hf_box)
    return {
        name
        for segment in checkpoint_inventory(shape)
        if not any(True for _ in _miscounted("", brought[segment.hf_name], segment.hf_box.num_elements))
        for name, _ in members(segment.hf_name, segment.hf_box)
    }


def _by_name(inventories: Mapping[int, Inventory]) -> Held:
    known: dict[int, Mapping[str, Sequence[Segment]]] = {}  # ranks may share an inventory
    found: dict[int, Mapping[str, Sequence[Segment]]] = {}
    for rank, inventory in inventories.items():
        if id(inventory) not in known:
            by_name: dict[str, list[Segment]] = defaultdict(list)
            for segment in inventory:
                by_name[segment.local_name].append(segment)
            known[id(inventory)] = by_name
        found[rank] = known[id(inventory)]
    return found


def _misread(moves: Iterable[Move], held: Held) -> Iterator[str]:
    for move in moves:
        segments = held.get(move.src_rank, {}).get(move.src_name, ())
        if not any(_says(s, move.src_box, move.hf_name, move.hf_box) for s in segments):
            yield f"source rank {move.src_rank}: {move.src_name}{move.src_box} is not {move.hf_name}{move.hf_box}"


def _misplaced(moves: Iterable[Move], needed: Held) -> Iterator[str]:
    for move in moves:
        segments = needed.get(move.dst_rank, {}).get(move.dst_name, ())
        if not any(_says(s, move.dst_box, move.hf_name, move.hf_box) for s in segments):
            yield f"target rank {move.dst_rank}: {move.dst_name}{move.dst_box} is not {move.hf_name}{move.hf_box}"


def _says(segment: Segment, local_box: Box, hf_name: str, hf_box: Box) -> bool:
    if segment.hf_name != hf_name or len(segment.hf_box.start) != len(hf_box.start):
        return False
    return segment.hf_box.contains(hf_box) and segment.to_local(hf_box) == local_box


def _miscounted(where: str, boxes: Iterable[Box], wanted: int) -> Iterator[str]:
    boxes = list(boxes)
    doubled = next(((a, b) for a, b in combinations(boxes, 2) if a.intersect(b)), None)
    if doubled is not None:
        yield f"{where}{doubled[0]} and {doubled[1]} bring the same elements"
    count = sum(box.num_elements for box in boxes)
    if count != wanted:
        yield f"{where}: {count} elements are brought, {wanted} are needed"
