"""What the responder reads: the documents that the questioner saw, and distractors up to the budget."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_spell.curriculum.sampler import generator
from megatron_spell.types.play import Distractor

SLACK = 0.02  # of the budget; with no more than this left, no further set is searched for a document that fits
MAX_MISSES = 64  # sets in a row without a document that fits, after which the rest of the budget stays empty


@dataclass(frozen=True, slots=True)
class Reading:
    """Indices of the set's own documents in their order, and those of other sets by rising place."""

    own: tuple[int, ...]
    distractors: tuple[Distractor, ...] = ()


class Shelf:
    """All documents that may be read, known by their lengths. A document costs its tokens and one separator.

    What is chosen is a function of the seed, the set, the epoch, the budget and the documents shown, and not of the
    draw: the rounds of all tasks on a set read the same documents in the same order, wherever the budget holds all that
    they were shown, so that their prompts share the documents as a prefix (docs/selfplay.md).
    """

    def __init__(self, document_tokens: Mapping[str, Sequence[int]], separator_tokens: int, seed: int) -> None:
        """`document_tokens` by set, in set order; no set is empty."""
        self._costs = {
            set_id: tuple(tokens + separator_tokens for tokens in lengths)
            for set_id, lengths in document_tokens.items()
        }
        self._set_ids = tuple(self._costs)
        self._seed = seed

    def costs(self, set_id: str) -> tuple[int, ...]:
        """Tokens of each document of a set, with its separator."""
        return self._costs[set_id]

    def tokens(self, set_id: str, own: Iterable[int], distractors: Iterable[Distractor] = ()) -> int:
        """Of these documents together, separators included."""
        costs = self._costs[set_id]
        return sum(costs[i] for i in own) + sum(self._costs[d.set_id][d.document] for d in distractors)

    def read(
        self, set_id: str, shown: Sequence[int], budget_tokens: int, epoch: int, *, from_other_sets: bool
    ) -> Reading:
        """`shown` whatever they take, then the other documents of the set that fit, then those of other sets.

        Documents are tried in seeded orders; one that does not fit what is left is passed over. Own documents stay in
        the set's order. Those of other sets stand among them at random, all arrangements being equally likely, so that
        where a document stands says nothing of whose it is.
        """
        left = budget_tokens - self.tokens(set_id, shown)
        order = generator(self._seed, "own documents", set_id, epoch).permutation(len(self._costs[set_id]))
        known = set(shown)
        more = self._fitting(set_id, (document for document in order.tolist() if document not in known), left)
        own = tuple(sorted((*shown, *more)))
        others: list[tuple[str, int]] = []
        if from_other_sets:
            others = self._others(set_id, left - self.tokens(set_id, more), SLACK * budget_tokens, epoch)
        return Reading(own, self._arrange(set_id, own, others, epoch))

    def _fitting(self, set_id: str, order: Iterable[int], left: int) -> list[int]:
        costs, taken = self._costs[set_id], []
        for document in order:
            if costs[document] <= left:
                taken.append(document)
                left -= costs[document]
        return taken

    def _others(self, set_id: str, left: int, slack: float, epoch: int) -> list[tuple[str, int]]:
        """Documents of other sets, set after set: a token store reads a set as a whole."""
        rng = generator(self._seed, "other sets", set_id, epoch)
        taken: list[tuple[str, int]] = []
        misses = 0
        for other in self._walk(set_id, rng):
            if left <= slack or misses == MAX_MISSES:
                break
            fitting = self._fitting(other, rng.permutation(len(self._costs[other])).tolist(), left)
            taken += ((other, document) for document in fitting)
            left -= self.tokens(other, fitting)
            misses = 0 if fitting else misses + 1
        return taken

    def _walk(self, set_id: str, rng: np.random.Generator) -> Iterator[str]:
        """All sets but `set_id`, each once, with a seeded start and stride: nothing as long as the store is made."""
        num_sets = len(self._set_ids)
        start, stride = int(rng.integers(num_sets)), 1 + int(rng.integers(num_sets))
        while math.gcd(stride, num_sets) > 1:
            stride += 1
        for step in range(num_sets):
            other = self._set_ids[(start + step * stride) % num_sets]
            if other != set_id:
                yield other

    def _arrange(
        self, set_id: str, own: Sequence[int], others: Sequence[tuple[str, int]], epoch: int
    ) -> tuple[Distractor, ...]:
        """Every document of the set and of the others gets a number; they stand by rising number.

        The set's own are sorted first, so that its order is kept, and do not depend on which of them are read.
        """
        if not others:
            return ()
        rng = generator(self._seed, "places", set_id, epoch)
        own_at = np.sort(rng.random(len(self._costs[set_id])))[list(own)]
        order = np.argsort(np.concatenate([own_at, rng.random(len(others))]), kind="stable")
        return tuple(
            Distractor(place, *others[number - len(own)])
            for place, number in enumerate(order.tolist())
            if number >= len(own)
        )
