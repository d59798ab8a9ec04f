"""Questions from outside in place of the questioner's: reinforcement learning from given answers."""

from collections.abc import Mapping, Sequence

import numpy as np

from megatron_spell.data.questions import KnownQuestion
from megatron_spell.types.play import Draw
from megatron_spell.types.seeds import stream_seed


class GivenQuestions:
    """Draws each question once before any comes again, in an order that seed and epoch alone decide.

    `num_documents` gives the size of each set, for questions on all documents of theirs.
    """

    def __init__(self, questions: Sequence[KnownQuestion], num_documents: Mapping[str, int], seed: int):
        self._questions, self._num_documents, self._seed = questions, num_documents, seed

    def draw(self, index: int) -> Draw:
        """The `index`-th draw of the run, counted from 0."""
        epoch, place = divmod(index, len(self._questions))
        order = np.random.default_rng(stream_seed(self._seed, "given questions", epoch)).permutation(
            len(self._questions)
        )
        known = self._questions[order[place]]
        documents = known.documents
        if documents is None:
            documents = tuple(range(self._num_documents[known.set_id]))
        return Draw(
            index=index,
            set_id=known.set_id,
            task=known.task,
            shown=(),
            answer_from=documents,
            given=known.question,
        )
