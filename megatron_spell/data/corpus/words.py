"""Words as 64-bit hashes, and n-grams of them: equal in every process and on every machine."""

import hashlib
import re

import numpy as np

# Words and numbers, lower case; single characters where a script writes no spaces. Punctuation does not count.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MANY = 500_000  # words remembered


class _Hashes(dict):
    def __missing__(self, word: str) -> int:
        if len(self) >= _MANY:
            self.clear()
        hashed = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        self[word] = hashed
        return hashed


_HASHES = _Hashes()


def word_hashes(text: str) -> np.ndarray:
    """uint64 [words]."""
    words = _WORDS.findall(text.lower())
    return np.fromiter((_HASHES[word] for word in words), dtype=np.uint64, count=len(words))


def ngram_hashes(hashes: np.ndarray, num_words: int) -> np.ndarray:
    """uint64 [max(0, words - num_words + 1)], one for every run of `num_words` words."""
    num = len(hashes) - num_words + 1
    if num <= 0:
        return np.zeros(0, dtype=np.uint64)
    mixed = np.zeros(num, dtype=np.uint64)
    for n in range(num_words):
        mixed = mixed * _FACTOR + hashes[n : n + num]
        mixed ^= mixed >> np.uint64(29)
    return mixed


def hashed_runs(text: str, num_words: int, fewest: int = 1) -> np.ndarray:
    """Distinct n-grams of a text, sorted; a shorter text of at least `fewest` words is one itself."""
    hashes = word_hashes(text)
    if fewest <= len(hashes) < num_words:
        return ngram_hashes(hashes, len(hashes))
    return np.unique(ngram_hashes(hashes, num_words))
