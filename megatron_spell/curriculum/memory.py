"""The history memory: solved questions of a set and task, shown again as examples to go beyond (paper section 3.2)."""

import re
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.types.play import QuestionAnswer, TaskName

# Scripts written without spaces count character by character; everything else by words.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")

Key = tuple[str, TaskName]


@dataclass(frozen=True, slots=True)
class Entry:
    """A remembered question and the documents its questioner saw (the whole of `Draw.shown`)."""

    question: QuestionAnswer
    documents: tuple[int, ...]


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the two word sets, case ignored, in [0, 1]; 1 for texts equal but for case and spaces.

    Numbers are words, so "revenue in 2019" and "revenue in 2020" stay apart in a question of ordinary length.
    """
    if a.casefold().split() == b.casefold().split():
        return 1.0
    words_a, words_b = word_set(a), word_set(b)
    union = words_a | words_b
    return len(words_a & words_b) / len(union) if union else 0.0


def word_set(text: str) -> frozenset[str]:
    """The different words of a text, case ignored; single characters of scripts that are written without spaces."""
    return frozenset(_WORD.findall(text.casefold()))


class HistoryMemory:
    """A first-in-first-out queue of at most `size` entries for each (set, task).

    Dynamics: an entry keeps *all* documents its questioner saw, which already hold those of older entries, so what the
    next questioner combines grows by the new documents of every visit (5, 10, 15, 20 with the paper's numbers) and does
    not shrink when an old entry is pushed out. A question that is exactly or nearly one of the remembered ones is
    refused, so a questioner that repeats itself widens nothing.
    """

    def __init__(self, size: int, duplicate_similarity: float) -> None:
        self._size = size
        self._duplicate_similarity = duplicate_similarity
        self._entries: defaultdict[Key, deque[Entry]] = defaultdict(lambda: deque(maxlen=size))

    def remembered(self, set_id: str, task: TaskName) -> tuple[Entry, ...]:
        """Oldest first; empty without history."""
        return tuple(self._entries.get((set_id, task), ()))

    def remember(self, set_id: str, task: TaskName, entry: Entry) -> bool:
        """True when the entry was taken in; False for a duplicate, or when history is off (size 0)."""
        if self._size == 0:
            return False
        for known in self.remembered(set_id, task):
            if similarity(known.question.question, entry.question.question) >= self._duplicate_similarity:
                return False
        self._entries[set_id, task].append(entry)
        return True

    def forget(self, set_id: str, task: TaskName, question: QuestionAnswer) -> None:
        """Drop the entry of this question; nothing happens where there is none (any more)."""
        kept = [entry for entry in self.remembered(set_id, task) if entry.question != question]
        self._entries.pop((set_id, task), None)
        if kept:
            self._entries[set_id, task].extend(kept)

    @property
    def num_entries(self) -> int:
        return sum(map(len, self._entries.values()))

    @property
    def num_histories(self) -> int:
        """(set, task) pairs with at least one entry."""
        return len(self._entries)

    def state(self) -> list[dict]:
        """JSON-able, oldest entries first within a (set, task)."""
        return [
            {
                "set": set_id,
                "task": task.value,
                "question": entry.question.question,
                "answer": entry.question.answer,
                "documents": list(entry.documents),
            }
            for (set_id, task), entries in self._entries.items()
            for entry in entries
        ]

    def load_state(self, state: Sequence[Mapping], num_documents: Mapping[str, int]) -> None:
        """Replace everything by `state`; with a smaller `size` than it was saved with, the newest entries stay.

        Raises:
            CurriculumError: an entry is malformed, or its set or documents are not in the catalog (`num_documents`).
        """
        entries: defaultdict[Key, deque[Entry]] = defaultdict(lambda: deque(maxlen=self._size))
        for record in state:
            key, entry = _entry(record, num_documents)
            if self._size:
                entries[key].append(entry)
        self._entries = entries


def _entry(record: Mapping, num_documents: Mapping[str, int]) -> tuple[Key, Entry]:
    try:
        key = (str(record["set"]), TaskName(record["task"]))
        question = QuestionAnswer(str(record["question"]), str(record["answer"]))
        documents = tuple(int(index) for index in record["documents"])
    except (KeyError, TypeError, ValueError) as error:
        raise CurriculumError(f"saved curriculum: a memory entry is malformed ({error!r}); start a new run") from None
    if any(not 0 <= index < num_documents.get(key[0], 0) for index in documents):
        raise CurriculumError(
            f"saved curriculum: set {key[0]!r} with documents {list(documents)} is not in the store;"
            " resume with the store the run began with"
        )
    return key, Entry(question, documents)
