"""Pieces of a BPE model that share a score: sentencepiece joins the leftmost first, a fast tokenizer the lowest id.

Llama 2 has such a group, runs of 2 to 16 blanks. Where a group is runs of one character that no other piece doubles,
a run of it is joined within itself only, and both ways can be played through for every length.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

_LENGTHS = 4  # times the longest piece; beyond it the longest piece only repeats


def disagreement(joined: Sequence[Any]) -> str | None:
    """What the two would do differently with pieces of equal score, None where nothing.

    `joined` are the SentencePiece messages in order of id.
    """
    groups: dict[float, list[str]] = defaultdict(list)
    for piece in joined:
        groups[piece.score].append(piece.piece)
    for score, tied in groups.items():
        if len(tied) == 1:
            continue
        others = [p.piece for p in joined if p.score != score]
        characters = set("".join(tied))
        double = next(iter(characters)) * 2
        if len(characters) > 1 or any(double in other for other in others):
            return f"{len(tied)} pieces such as {tied[0]!r} share the score {score:g}, so what is joined first differs"
        if at := _different_run([len(piece) for piece in tied]):
            return f"{len(tied)} runs of {double[0]!r} share the score {score:g}; a run of {at} would be cut otherwise"
    return None


def _different_run(lengths: Sequence[int]) -> int | None:
    """The shortest run that is cut otherwise when the leftmost pair goes first than when the earliest piece does."""
    order = {length: number for number, length in enumerate(lengths)}
    for run in range(2, _LENGTHS * max(lengths) + 1):
        if _cut(run, order, lambda total: 0) != _cut(run, order, order.__getitem__):
            return run
    return None


def _cut(run: int, known: dict[int, int], rank: Callable[[int], int]) -> list[int]:
    parts = [1] * run
    while True:
        open_pairs = [(rank(a + b), at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in known]
        if not open_pairs:
            return parts
        _, at = min(open_pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
