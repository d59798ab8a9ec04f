"""Match what sources hold with what targets need; pure, computed once, printable and serialisable."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

from megatron_spell.bridge.boxes import Box, BridgeError, Inventory, Segment
from megatron_spell.bridge.stacks import is_stack, runs

_FORMAT = "megatron_spell.bridge.plan/1"


Site = tuple[str | int, ...]  # where a rank runs, the widest place first; () where that is not known


class PlanError(BridgeError):
    """Sources and targets that do not match; one line naming tensor and box."""


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `src_box` of `src_name` on `src_rank` to `dst_box` of `dst_name` on `dst_rank`.

    Both are `hf_box` of the Hugging Face tensor `hf_name`.
    """

    src_rank: int
    dst_rank: int
    hf_name: str
    hf_box: Box
    src_name: str
    src_box: Box
    dst_name: str
    dst_box: Box

    @property
    def num_elements(self) -> int:
        return self.hf_box.num_elements

    def part(self, hf_box: Box) -> "Move":
        """The move of a part of `hf_box`."""
        src_box = hf_box.moved(self.hf_box.start, self.src_box.start)
        return replace(
            self, hf_box=hf_box, src_box=src_box, dst_box=hf_box.moved(self.hf_box.start, self.dst_box.start)
        )


@dataclass(frozen=True, slots=True)
class Bucket:
    """One message: `moves` packed one after the other, each at its byte offset.

    `tag` is the bucket's place in the order that every rank follows, unique within a schedule.
    """

    tag: int
    src_rank: int
    dst_rank: int
    num_bytes: int
    moves: tuple[tuple[int, Move], ...]


@dataclass(frozen=True)
class Plan:
    """All moves, by target rank and there in the order of the target's inventory."""

    moves: tuple[Move, ...]

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({rank for move in self.moves for rank in (move.src_rank, move.dst_rank)}))

    def bytes_between(self, itemsize: int) -> dict[tuple[int, int], int]:
        """(source rank, target rank) -> bytes moved, copies on one rank included."""
        total: dict[tuple[int, int], int] = defaultdict(int)
        for move in self.moves:
            total[move.src_rank, move.dst_rank] += move.num_elements * itemsize
        return dict(sorted(total.items()))

    def into(self, targets: Collection[int]) -> "Plan":
        """The part of the plan that ends in these target ranks."""
        return Plan(tuple(move for move in self.moves if move.dst_rank in targets))

    def schedule(self, bucket_bytes: int, itemsize: int) -> tuple[Bucket, ...]:
        """All buckets in the one order that every rank follows.

        A total order keeps any transport free of deadlock: the first unfinished bucket has both its ranks waiting for
        it. Targets take turns, and a target's sources fill their buckets side by side, so few of its tensors are
        incomplete at a time: what its sources' open buckets hold, and one tensor that spans buckets.
        """
        if bucket_bytes < itemsize:
            raise PlanError(f"bucket_bytes = {bucket_bytes}: cannot hold one element of {itemsize} bytes; raise it")
        windows = [
            (number, buckets)
            for moves in self._by_target().values()
            for number, buckets in enumerate(_windows(moves, bucket_bytes, itemsize))
        ]
        windows.sort(key=lambda window: window[0])
        ordered = [bucket for _, buckets in windows for bucket in buckets]
        return tuple(_bucket(tag, moves, itemsize) for tag, moves in enumerate(ordered))

    def messages(self, bucket_bytes: int, itemsize: int) -> dict[tuple[int, int], tuple[Bucket, ...]]:
        """(source rank, target rank) -> its buckets in order; a move larger than a bucket is split."""
        pairs: dict[tuple[int, int], list[Bucket]] = defaultdict(list)
        for bucket in self.schedule(bucket_bytes, itemsize):
            pairs[bucket.src_rank, bucket.dst_rank].append(bucket)
        return {pair: tuple(buckets) for pair, buckets in pairs.items()}

    def _by_target(self) -> dict[int, list[Move]]:
        by_target: dict[int, list[Move]] = defaultdict(list)
        for move in self.moves:
            by_target[move.dst_rank].append(move)
        return by_target

    def to_json(self) -> str:
        """One line of JSON; names stand once, a move is `[source, target, three names, shape, three starts]`."""
        names: dict[str, int] = {}
        rows = []
        for m in self.moves:
            numbers = [names.setdefault(name, len(names)) for name in (m.hf_name, m.src_name, m.dst_name)]
            starts = [m.hf_box.start, m.src_box.start, m.dst_box.start]
            rows.append([m.src_rank, m.dst_rank, *numbers, m.hf_box.shape, *starts])
        return json.dumps({"format": _FORMAT, "names": list(names), "moves": rows}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan `to_json` wrote. Raises PlanError for anything else."""
        try:
            raw = json.loads(text)
            if raw["format"] != _FORMAT or not all(isinstance(name, str) for name in raw["names"]):
                raise ValueError("not of the format " + _FORMAT)
            return cls(tuple(_move_from_json(row, raw["names"]) for row in raw["moves"]))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise PlanError(f"not a plan: {' '.join(str(error).split())[:200]}") from None


def plan(
    sources: Mapping[int, Inventory], targets: Mapping[int, Inventory], sites: Mapping[int, Site] | None = None
) -> Plan:
    """The moves that fill every box of every target exactly once.

    Equal boxes on several ranks are replicas: a target that holds one itself takes its own, otherwise the replicas
    share the sending by bytes (largest box first, to the replica that sends least so far; ties to the lowest rank).
    With `sites`, where each rank runs (node, then GPU), the replicas nearest to the target come before the others.
    Raises PlanError naming tensor and box: nobody holds it, sources overlap without being equal, or two segments
    of one target tensor overlap or leave a hole between them.
    """
    held = _held_boxes(sources)
    wanted: list[_Wanted] = []
    checked: set[int] = set()
    for rank in sorted(targets):
        if id(targets[rank]) not in checked:  # workers of several engines may share one inventory
            _refuse_doubled_targets(rank, targets[rank])
            _refuse_holes(rank, targets[rank])
            checked.add(id(targets[rank]))
        for segment in _together(targets[rank]):
            wanted += [(rank, segment, common, holders) for common, holders in _cover(segment, rank, held)]
    moves: dict[int, Move] = {}
    sent: dict[int, int] = dict.fromkeys(sources, 0)
    for i in sorted(range(len(wanted)), key=lambda i: -wanted[i][2].num_elements):
        rank, segment, common, holders = wanted[i]
        source = rank if rank in holders else min(_near(holders, rank, sites), key=lambda r: (sent[r], r))
        if source != rank:
            sent[source] += common.num_elements
        moves[i] = _move(source, holders[source], rank, segment, common)
    return Plan(tuple(moves[i] for i in range(len(wanted))))


_Wanted = tuple[int, Segment, Box, dict[int, Segment]]  # target rank, what it needs, the part, who holds that part


def _near(holders: Mapping[int, Segment], rank: int, sites: Mapping[int, Site] | None) -> Iterable[int]:
    """Those of the holders whose sites have the longest beginning in common with the target's."""
    own = () if sites is None else sites.get(rank, ())
    for length in range(len(own), 0, -1):
        near = [holder for holder in holders if sites and sites.get(holder, ())[:length] == own[:length]]
        if near:
            return near
    return holders


def _held_boxes(sources: Mapping[int, Inventory]) -> dict[str, dict[Box, dict[int, Segment]]]:
    """hf name -> box -> rank -> segment, for disjoint boxes only."""
    held: dict[str, dict[Box, dict[int, Segment]]] = defaultdict(dict)
    for rank in sorted(sources):
        for segment in sources[rank]:
            held[segment.hf_name].setdefault(segment.hf_box, {}).setdefault(rank, segment)
    for name, boxes in held.items():
        for a, b in combinations(boxes, 2):
            if len(a.start) != len(b.start) or a.intersect(b):
                ranks = f"ranks {sorted(boxes[a])} and {sorted(boxes[b])}"
                raise PlanError(f"{name}: sources hold the overlapping boxes {a} and {b} ({ranks})")
    return held


def _refuse_doubled_targets(rank: int, inventory: Inventory) -> None:
    by_name: dict[str, list[Segment]] = defaultdict(list)
    for segment in inventory:
        by_name[segment.local_name].append(segment)
    for name, segments in by_name.items():
        for a, b in combinations(segments, 2):
            if len(a.local_box.start) != len(b.local_box.start) or a.local_box.intersect(b.local_box):
                raise PlanError(
                    f"target rank {rank}: {name}{a.local_box} for {a.hf_name} and {name}{b.local_box}"
                    f" for {b.hf_name} overlap"
                )


def _refuse_holes(rank: int, inventory: Inventory) -> None:
    """What lies before the end of a tensor's segments must be filled; behind it there may be padding.

    Of a tensor in Hugging Face's own coordinates a part may be wanted (an engine in checkpoint form).
    """
    by_name: dict[str, list[Segment]] = defaultdict(list)
    for segment in inventory:
        by_name[segment.local_name].append(segment)
    for name, segments in by_name.items():
        if all(s.local_name == s.hf_name and s.local_box == s.hf_box for s in segments):
            continue
        boxes = [s.local_box for s in segments]
        stop = tuple(max(sizes) for sizes in zip(*(box.stop for box in boxes)))
        stretches = [(0, 0, stop[0])]
        if is_stack(name):  # some of its tensors may be elsewhere
            stretches = runs(sorted({i for box in boxes for i in range(box.start[0], box.stop[0])}))
        for _, first, last in stretches:
            holes = [Box((first, *(0,) * (len(stop) - 1)), (last, *stop[1:]))]
            for box in boxes:
                holes = [rest for hole in holes for rest in hole.minus(box)]
            if holes:
                raise PlanError(f"target rank {rank}: {name}{holes[0]} is filled by no segment")


def _together(inventory: Inventory) -> Iterator[Segment]:
    """The segments, those of one local tensor one after the other."""
    by_name: dict[str, list[Segment]] = defaultdict(list)
    for segment in inventory:
        by_name[segment.local_name].append(segment)
    for segments in by_name.values():
        yield from segments


def _cover(
    segment: Segment, rank: int, held: Mapping[str, Mapping[Box, dict[int, Segment]]]
) -> Iterator[tuple[Box, dict[int, Segment]]]:
    missing = [segment.hf_box]
    for box, holders in held.get(segment.hf_name, {}).items():
        if len(box.start) != len(segment.hf_box.start):
            raise PlanError(f"{segment.hf_name}: sources hold {box}, target rank {rank} needs {segment.hf_box}")
        common = box.intersect(segment.hf_box)
        if common is not None:
            missing = [rest for part in missing for rest in part.minus(common)]
            yield common, holders
    if missing:
        raise PlanError(f"{segment.hf_name}{missing[0]}: target rank {rank} needs it and no source holds it")


def _move(source: int, held: Segment, rank: int, needed: Segment, common: Box) -> Move:
    return Move(
        src_rank=source,
        dst_rank=rank,
        hf_name=needed.hf_name,
        hf_box=common,
        src_name=held.local_name,
        src_box=held.to_local(common),
        dst_name=needed.local_name,
        dst_box=needed.to_local(common),
    )


def _windows(moves: list[Move], bucket_bytes: int, itemsize: int) -> Iterator[list[list[Move]]]:
    """A target's moves cut into windows; a window holds at most one bucket of each source."""
    open_moves: dict[int, list[Move]] = {}
    filled: dict[int, int] = defaultdict(int)
    for whole_move in moves:
        for move in _split(whole_move, bucket_bytes // itemsize):
            num_bytes = move.num_elements * itemsize
            if filled[move.src_rank] + num_bytes > bucket_bytes:
                yield list(open_moves.values())
                open_moves, filled = {}, defaultdict(int)
            open_moves.setdefault(move.src_rank, []).append(move)
            filled[move.src_rank] += num_bytes
    if open_moves:
        yield list(open_moves.values())


def _split(move: Move, max_elements: int) -> Iterator[Move]:
    if move.num_elements <= max_elements:
        yield move
    else:
        yield from (move.part(box) for box in move.hf_box.pieces(max_elements))


def _bucket(tag: int, moves: list[Move], itemsize: int) -> Bucket:
    placed, at = [], 0
    for move in moves:
        placed.append((at, move))
        at += move.num_elements * itemsize
    return Bucket(tag, moves[0].src_rank, moves[0].dst_rank, at, tuple(placed))


def _move_from_json(row: list, names: list[str]) -> Move:
    src_rank, dst_rank, hf, src, dst, shape, *starts = row
    numbers = [src_rank, dst_rank, hf, src, dst, *shape, *(n for start in starts for n in start)]
    if len(starts) != 3 or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{row} is not a move")
    if any(len(start) != len(shape) for start in starts):
        raise ValueError(f"{row} mixes numbers of dims")
    boxes = [Box(tuple(start), tuple(a + n for a, n in zip(start, shape))) for start in starts]
    return Move(src_rank, dst_rank, names[hf], boxes[0], names[src], boxes[1], names[dst], boxes[2])
