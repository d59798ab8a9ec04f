"""Which queries of a bin attend to which keys, as few calls of a variable-length kernel.

Everything here is a table made from the bin's segments; no query or key is looked at.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

Span = tuple[int, int]
CALLS_KEPT = 32  # bins that a pipeline has under way, each asked for by every layer, forward and recomputed


@dataclass(frozen=True, slots=True)
class Part:
    """Local queries of [start, stop) against the bin's keys of [key_start, key_stop).

    The two spans of a causal part are the same tokens. Every token has one causal part, which holds itself.
    """

    start: int
    stop: int
    key_start: int
    key_stop: int
    causal: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Parts that a kernel computes at once, their queries and their keys gathered one part after the other.

    `queries` and `keys` say which rows to gather: a slice where they lie together, else int64 indices. No query occurs
    twice; keys may. Part p has the gathered queries of [query_starts[p], query_starts[p + 1]), int32 [P + 1] on the
    device, and keys likewise.
    """

    causal: bool
    queries: slice | Tensor
    keys: slice | Tensor
    query_starts: Tensor
    key_starts: Tensor
    max_queries: int  # of one part
    max_keys: int


@lru_cache(CALLS_KEPT)
def calls_of(segments: tuple[tuple[int, ...], ...], spans: tuple[Span, ...], device: torch.device) -> tuple[Call, ...]:
    """The kernel calls of the queries in `spans` of a bin with these segments: one, two, or with cut segments three.

    The first is causal and has every query that lies in a segment.
    """
    return tuple(_call(parts, device) for parts in grouped(parts_of(segments, spans)))


def parts_of(segments_S_4: Iterable[Sequence[int]], spans: Sequence[Span]) -> Iterator[Part]:
    """The parts of the queries in `spans` of a bin, which lie one after the other locally.

    Responses that lie side by side share one part for their prompt. Causal parts come before the others of a token.
    """
    shared: list[Part] = []
    num_before = 0  # queries of the spans before this one
    for first, last in spans:
        shift = num_before - first
        for prompt_start, prompt_stop, start, stop in segments_S_4:
            low, high = max(start, first), min(stop, last)
            if low >= high:
                continue
            yield Part(low + shift, high + shift, low, high, causal=True)
            if start < low:
                yield Part(low + shift, high + shift, start, low)
            if (start, stop) != (prompt_start, prompt_stop):
                _append(shared, Part(low + shift, high + shift, prompt_start, prompt_stop))
        num_before += last - first
    yield from shared


def _append(parts: list[Part], part: Part) -> None:
    """Add a part, or lengthen the one before it when that has the same keys."""
    before = parts[-1] if parts else None
    if before and before.stop == part.start and (before.key_start, before.key_stop) == (part.key_start, part.key_stop):
        parts[-1] = Part(before.start, part.stop, part.key_start, part.key_stop)
    else:
        parts.append(part)


def grouped(parts: Iterable[Part]) -> list[list[Part]]:
    """Each part in the first group of its sort whose queries all lie before its own."""
    groups: list[list[Part]] = []
    for part in parts:
        home = next((g for g in groups if g[-1].causal == part.causal and g[-1].stop <= part.start), None)
        if home is None:
            groups.append([part])
        else:
            home.append(part)
    return groups


def _call(parts: list[Part], device: torch.device) -> Call:
    queries = [(part.start, part.stop) for part in parts]
    keys = [(part.key_start, part.key_stop) for part in parts]
    return Call(
        causal=parts[0].causal,
        queries=_rows(queries, device),
        keys=_rows(keys, device),
        query_starts=_starts(queries, device),
        key_starts=_starts(keys, device),
        max_queries=max(stop - start for start, stop in queries),
        max_keys=max(stop - start for start, stop in keys),
    )


def _rows(spans: list[Span], device: torch.device) -> slice | Tensor:
    if all(before[1] == after[0] for before, after in pairwise(spans)):
        return slice(spans[0][0], spans[-1][1])
    return torch.cat([torch.arange(start, stop) for start, stop in spans]).to(device)


def _starts(spans: list[Span], device: torch.device) -> Tensor:
    sizes = (stop - start for start, stop in spans)
    return torch.tensor(list(accumulate(sizes, initial=0)), dtype=torch.int32, device=device)
