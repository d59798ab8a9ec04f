"""Boxes in tensor index space: the only geometry the bridge needs (pure Python)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod


class BridgeError(ValueError):
    """A fault of the bridge in one line; the rooms' special cases are PlanError, FolderError, TransportError."""


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A hyper-rectangle `[start, stop)` for each dim of a tensor."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop) or any(not 0 <= a < b for a, b in zip(self.start, self.stop)):
            raise BridgeError(f"start {self.start} and stop {self.stop} do not bound a box")

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Box":
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop))

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def index(self) -> tuple[slice, ...]:
        """What to put between the brackets of a tensor or an array."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop))

    def intersect(self, other: "Box") -> "Box | None":
        """The common part, None where there is none. Both boxes must have the same number of dims."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, stop) if all(a < b for a, b in zip(start, stop)) else None

    def contains(self, other: "Box") -> bool:
        return self.intersect(other) == other

    def minus(self, other: "Box") -> Iterator["Box"]:
        """Disjoint boxes that cover what is in this box and not in `other`."""
        common = self.intersect(other)
        if common is None:
            yield self
            return
        start, stop = list(self.start), list(self.stop)
        for dim, (low, high) in enumerate(zip(common.start, common.stop)):
            if start[dim] < low:
                yield Box(tuple(start), (*stop[:dim], low, *stop[dim + 1 :]))
            if high < stop[dim]:
                yield Box((*start[:dim], high, *start[dim + 1 :]), tuple(stop))
            start[dim], stop[dim] = low, high

    def pieces(self, max_elements: int) -> Iterator["Box"]:
        """Disjoint parts of at most `max_elements`, cut along dim 0, then along the next where a row is too large."""
        pending: list[Box] = [self]
        while pending:
            part = pending.pop()
            if part.num_elements <= max_elements:
                yield part
                continue
            dim = next(d for d, size in enumerate(part.shape) if size > 1)
            step = max(1, max_elements * part.shape[dim] // part.num_elements)
            cuts = [*range(part.start[dim], part.stop[dim], step), part.stop[dim]]
            parts = [
                Box((*part.start[:dim], a, *part.start[dim + 1 :]), (*part.stop[:dim], b, *part.stop[dim + 1 :]))
                for a, b in pairwise(cuts)
            ]
            pending += reversed(parts)

    def moved(self, origin: tuple[int, ...], to: tuple[int, ...]) -> "Box":
        """This box in coordinates in which the point `origin` is called `to`."""
        offset = tuple(b - a for a, b in zip(origin, to, strict=True))
        return Box(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop)) + "]"


@dataclass(frozen=True, slots=True)
class Segment:
    """`local_box` of one rank's tensor `local_name` holds `hf_box` of the Hugging Face tensor `hf_name`."""

    hf_name: str
    hf_box: Box
    local_name: str
    local_box: Box

    def __post_init__(self) -> None:
        if self.hf_box.shape != self.local_box.shape:
            raise BridgeError(f"{self.hf_name}{self.hf_box} does not fit into {self.local_name}{self.local_box}")

    def to_local(self, hf_box: Box) -> Box:
        """Where a part of `hf_box` stands in the local tensor."""
        return hf_box.moved(self.hf_box.start, self.local_box.start)


Inventory = tuple[Segment, ...]
"""All that one rank (or one folder) holds or needs."""
