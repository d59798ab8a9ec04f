"""Documents to make transcripts from: parts of training sets, and word salads that nobody can know by heart."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lookup import clean

from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.documents import Document

NUMBERS_PER_WORD = 1 / 15  # in documents that get numbers; the reference itself has one in 250 words


@dataclass(frozen=True, slots=True)
class Contexts:
    """Draws contexts from `sets`, the texts of the training sets; `words` are all different words in them."""

    tokenizer: Tokenizer
    sets: Sequence[Sequence[str]]
    words: Sequence[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer, sets: Sequence[Sequence[str]]) -> "Contexts":
        return cls(tokenizer, sets, sorted({w for texts in sets for text in texts for w in text.split() if clean(w)}))

    def draw(self, rng: random.Random, num_tokens: int, salad_share: float, number_share: float) -> list[Document]:
        """Documents of one set, in any order, up to `num_tokens` (at least one); or a salad.

        A share of the contexts gets numbers strewn in, for there is little to ask for a number otherwise.
        """
        salad = rng.random() < salad_share
        strewn = rng.random() < number_share
        texts = self._salad(rng) if salad else iter(rng.sample(own := rng.choice(self.sets), len(own)))
        documents: list[Document] = []
        for text in texts:
            document = self.tokenised(strew_numbers(text, rng) if strewn else text)
            num_tokens -= document.num_tokens
            if documents and num_tokens < 0:
                break
            documents.append(document)
        return documents

    def _salad(self, rng: random.Random):
        while True:
            yield " ".join(rng.choice(self.words) for _ in range(rng.randint(12, 28)))

    def tokenised(self, text: str) -> Document:
        return Document("", "", self.tokenizer.encode_quoted(text))


def strew_numbers(text: str, rng: random.Random) -> str:
    """`text` with a number after every 15th word or so: a whole one, or one like a version."""
    words = []
    for word in text.split(" "):
        words.append(word)
        if rng.random() < NUMBERS_PER_WORD:
            whole = rng.random() < 0.6
            words.append(str(rng.randint(1, 999)) if whole else f"{rng.randint(1, 9)}.{rng.randint(1, 19)}")
    return " ".join(words)
