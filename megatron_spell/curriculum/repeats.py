"""How far the questioner repeats itself: near duplicates among the questions of a run's latest steps."""

from collections import defaultdict, deque
from collections.abc import Sequence

from megatron_spell.curriculum.curriculum import in_words
from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.curriculum.memory import similarity, word_set
from megatron_spell.types.play import Round


class AskedQuestions:
    """The latest `size` well-formed questions, whatever became of them; the history memory keeps usable ones alone.

    Two questions are near duplicates from a `similarity` of their words (curriculum/memory.py) on.
    """

    def __init__(self, size: int, duplicate_similarity: float) -> None:
        self._size, self._duplicate_similarity = size, duplicate_similarity
        self._asked: deque[tuple[str, str]] = deque()  # (set, question), oldest first
        self._of_set: defaultdict[str, deque[str]] = defaultdict(deque)

    def observe(self, rounds: Sequence[Round]) -> dict[str, float]:
        """Take in a step's rounds; what is reported is left out when no question was asked.

        `questioner/repeated/share`: questions nearly asked before on their set, in this step or among those kept.
        `questioner/repeated_elsewhere/share`: those nearly asked before on another set in this step.
        """
        asked = [(r.draw.set_id, in_words(r.question).question) for r in rounds if r.question is not None]
        if not asked:
            return {}
        num_repeated = 0
        for set_id, question in asked:
            num_repeated += any(self._same(question, known) for known in self._of_set[set_id])
            self._keep(set_id, question)
        return {
            "questioner/repeated/share": num_repeated / len(asked),
            "questioner/repeated_elsewhere/share": self._num_elsewhere(asked) / len(asked),
        }

    def _same(self, a: str, b: str) -> bool:
        return similarity(a, b) >= self._duplicate_similarity

    def _num_elsewhere(self, asked: Sequence[tuple[str, str]]) -> int:
        """Every pair of a step is looked at, so words are taken apart once and lengths that cannot match passed over."""
        least, count = self._duplicate_similarity, 0
        before: list[tuple[str, frozenset[str]]] = []
        for set_id, question in asked:
            words = word_set(question)
            low, high = len(words) * least, len(words) / least if least else float("inf")
            count += any(
                other != set_id and low <= len(known) <= high and _jaccard(words, known) >= least
                for other, known in before
            )
            before.append((set_id, words))
        return count

    def _keep(self, set_id: str, question: str) -> None:
        self._asked.append((set_id, question))
        self._of_set[set_id].append(question)
        while len(self._asked) > self._size:
            oldest, _ = self._asked.popleft()
            self._of_set[oldest].popleft()
            if not self._of_set[oldest]:
                del self._of_set[oldest]

    def state(self) -> list[list[str]]:
        """JSON-able, oldest first."""
        return [list(pair) for pair in self._asked]

    def load_state(self, state: Sequence[Sequence[str]]) -> None:
        """Replace everything by `state`; the newest stay where it is larger than `size`. Raises CurriculumError."""
        try:
            pairs = [(str(set_id), str(question)) for set_id, question in state]
        except (TypeError, ValueError) as error:
            raise CurriculumError(f"saved questions: are malformed ({error!r}); start a new run") from None
        self._asked.clear()
        self._of_set.clear()
        for set_id, question in pairs:
            self._keep(set_id, question)


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    union = len(a | b)
    return len(a & b) / union if union else float(a == b)
