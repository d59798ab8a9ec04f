"""How far the questioner repeats itself: near duplicates among the questions of a run's latest steps."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_spell.curriculum.curriculum import in_words
from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.curriculum.memory import word_set
from megatron_spell.types.play import Round


@dataclass(frozen=True, slots=True)
class Asked:
    set_id: str
    text: str
    words: frozenset[str]

    @classmethod
    def of(cls, set_id: str, text: str) -> "Asked":
        return cls(set_id, text, word_set(text) or frozenset((text.strip(),)))


class AskedQuestions:
    """The latest `size` well-formed questions, whatever became of them; the history memory keeps usable ones alone.

    Two questions are near duplicates when the Jaccard similarity of their words is `duplicate_similarity` at least, as
    in curriculum/memory.py.
    """

    def __init__(self, size: int, duplicate_similarity: float) -> None:
        self._size, self._least = size, duplicate_similarity
        self._asked: deque[Asked] = deque()  # oldest first
        self._of_set: defaultdict[str, deque[Asked]] = defaultdict(deque)

    def observe(self, rounds: Sequence[Round]) -> dict[str, float]:
        """Take in a step's rounds; what is reported is left out when no question was asked.

        `questioner/repeated/share`: questions nearly asked before on their set, in this step or among those kept.
        `questioner/repeated_elsewhere/share`: those nearly asked before on another set in this step.
        """
        asked = [Asked.of(r.draw.set_id, in_words(r.question).question) for r in rounds if r.ask and r.question]
        if not asked:
            return {}
        num_repeated = 0
        for question in asked:
            num_repeated += any(self._same(question, known) for known in self._of_set[question.set_id])
            self._keep(question)
        return {
            "questioner/repeated/share": num_repeated / len(asked),
            "questioner/repeated_elsewhere/share": self._num_elsewhere(asked) / len(asked),
        }

    def _same(self, a: Asked, b: Asked) -> bool:
        return len(a.words & b.words) >= self._least * len(a.words | b.words)

    def _num_elsewhere(self, asked: Sequence[Asked]) -> int:
        """Only questions that have one of their rarest words in common are compared.

        Near duplicates share at least `least` times n of the n words of either, so one of its n - least * n + 1 rarest
        at least (prefix filtering, Chaudhuri et al. 2006).
        """
        frequency = Counter(word for question in asked for word in question.words)
        with_word: defaultdict[str, list[Asked]] = defaultdict(list)
        count = 0
        for question in asked:
            num_shared = math.ceil(self._least * len(question.words) - 1e-9)
            rarest_first = sorted(question.words, key=lambda word: (frequency[word], word))
            rare = rarest_first[: len(question.words) - num_shared + 1]
            count += any(
                known.set_id != question.set_id and self._same(question, known)
                for word in rare
                for known in with_word[word]
            )
            for word in rare:
                with_word[word].append(question)
        return count

    def _keep(self, question: Asked) -> None:
        self._asked.append(question)
        self._of_set[question.set_id].append(question)
        while len(self._asked) > self._size:
            oldest = self._asked.popleft().set_id
            self._of_set[oldest].popleft()
            if not self._of_set[oldest]:
                del self._of_set[oldest]

    def state(self) -> list[list[str]]:
        """JSON-able, oldest first."""
        return [[question.set_id, question.text] for question in self._asked]

    def load_state(self, state: Sequence[Sequence[str]]) -> None:
        """Replace everything by `state`; the newest stay where it is larger than `size`. Raises CurriculumError."""
        try:
            questions = [Asked.of(str(set_id), str(text)) for set_id, text in state]
        except (TypeError, ValueError) as error:
            raise CurriculumError(f"saved questions: are malformed ({error!r}); start a new run") from None
        self._asked.clear()
        self._of_set.clear()
        for question in questions:
            self._keep(question)
