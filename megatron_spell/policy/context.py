"""How context parallelism deals out a bin's tokens: 2 * cp equal chunks, rank r holds chunk r and chunk 2 * cp - 1 - r.

A token far back in a bin attends to more than one in front; a chunk from either end gives every rank as much to do.
A rank's *local* tokens are its two chunks one after the other. With cp = 1 everything here is the identity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Share:
    """Which of `parts` context-parallel ranks is meant."""

    index: int = 0
    parts: int = 1

    def spans(self, num_tokens: int) -> list[tuple[int, int]]:
        """The stretches [start, stop) of a bin of `num_tokens` that this rank holds, in local order; neighbours united.

        `num_tokens` is a multiple of 2 * parts where parts > 1.
        """
        if self.index == self.parts - 1:  # the two chunks in the middle; of a single rank, all there is
            size = num_tokens // self.parts
            start = (num_tokens - size) // 2
            return [(start, start + size)]
        chunk, mirrored = num_tokens // (2 * self.parts), 2 * self.parts - 1 - self.index
        return [(at * chunk, (at + 1) * chunk) for at in (self.index, mirrored)]

    def tokens(self, num_tokens: int) -> Tensor:
        """Where this rank's tokens stand in the bin: int64 [T / parts]."""
        return torch.cat([torch.arange(start, stop) for start, stop in self.spans(num_tokens)])


def in_bin_order(gathered: Tensor, parts: int) -> Tensor:
    """Tokens (dim 0) as an all-gather brings them, rank after rank, put in the order of the bin."""
    if parts == 1:
        return gathered
    chunks = gathered.chunk(2 * parts)
    firsts, mirrored = chunks[0::2], chunks[1::2]
    return torch.cat([*firsts, *reversed(mirrored)])
