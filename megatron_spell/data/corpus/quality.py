"""Cheap signs of text that is not prose, after Gopher (Rae et al. 2021, A.1.1) and C4 (Raffel et al. 2020, 2.2).

Every sign has a name, which the report counts. They are made for English web pages: a table, a list of links or a
program fails them.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "*", "-", "‣", "\u2013")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Measured:
    """A text with what several signs look at."""

    text: str

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [paragraph.strip() for paragraph in self.text.split("\n\n") if paragraph.strip()]

    def share_of_lines(self, holds: Callable[[str], bool]) -> float:
        return sum(map(holds, self.lines)) / max(1, len(self.lines))


def repeated_share(parts: Sequence[str]) -> float:
    """Share of the parts that repeat an earlier one."""
    return 1 - len(set(parts)) / len(parts) if parts else 0.0


def repeated_char_share(parts: Sequence[str]) -> float:
    """Share of the parts' characters that stand in repetitions of an earlier one."""
    seen: set[str] = set()
    repeated = total = 0
    for part in parts:
        total += len(part)
        repeated += len(part) if part in seen else 0
        seen.add(part)
    return repeated / total if total else 0.0


def top_ngram_share(words: Sequence[str], num_words: int) -> float:
    """Share of the words' characters that the most frequent n-gram covers; one that occurs once counts nothing."""
    ngrams = Counter(zip(*(words[n:] for n in range(num_words))))
    if not ngrams:
        return 0.0
    most = max(ngrams.values())
    if most == 1:
        return 0.0
    longest = max(sum(map(len, ngram)) for ngram, times in ngrams.items() if times == most)
    return most * longest / max(1, sum(map(len, words)))


def repeated_ngram_share(words: Sequence[str], num_words: int) -> float:
    """Share of the words' characters that stand in n-grams which occurred before; no character counts twice."""
    seen: set[int] = set()
    repeated, covered = 0, 0  # covered: words before this one are counted
    for start in range(len(words) - num_words + 1):
        ngram = hash(tuple(words[start : start + num_words]))
        if ngram in seen:
            fresh = max(covered, start)
            repeated += sum(map(len, words[fresh : start + num_words]))
            covered = start + num_words
        seen.add(ngram)
    return repeated / max(1, sum(map(len, words)))


_TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
_REPEATED_NGRAMS = {5: 0.15, 10: 0.10}

# name -> whether it speaks against a text; the first that does names the reason.
SIGNS: dict[str, Callable[[Measured], bool]] = {
    "too_few_words": lambda m: len(m.words) < 50,
    "odd_word_length": lambda m: not 3 <= sum(map(len, m.words)) / max(1, len(m.words)) <= 10,
    "many_symbols": lambda m: (
        (m.text.count("#") + m.text.count("...") + m.text.count("…")) > 0.1 * max(1, len(m.words))
    ),
    "mostly_bullets": lambda m: m.share_of_lines(lambda line: line.startswith(_BULLETS)) > 0.9,
    "many_ellipses": lambda m: m.share_of_lines(lambda line: line.endswith(("...", "…"))) > 0.3,
    "few_letters": lambda m: sum(_LETTER.search(word) is not None for word in m.words) < 0.8 * len(m.words),
    "few_stop_words": lambda m: len(_STOP_WORDS & {word.lower() for word in m.words}) < 2,
    "lorem_ipsum": lambda m: "lorem ipsum" in m.text.lower(),
    "repeated_lines": lambda m: repeated_share(m.lines) > 0.3 or repeated_char_share(m.lines) > 0.2,
    "repeated_paragraphs": lambda m: repeated_share(m.paragraphs) > 0.3 or repeated_char_share(m.paragraphs) > 0.2,
    "repeated_phrase": lambda m: any(top_ngram_share(m.words, n) > most for n, most in _TOP_NGRAMS.items()),
    "repeated_passages": lambda m: any(repeated_ngram_share(m.words, n) > m_ for n, m_ in _REPEATED_NGRAMS.items()),
}


def sign_against(text: str) -> str | None:
    """Name of the first sign against `text`, None when there is none."""
    measured = Measured(text)
    return next((name for name, holds in SIGNS.items() if holds(measured)), None)
