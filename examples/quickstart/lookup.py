"""Questions whose answers are known by construction: what stands next in the documents after a quoted fragment."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.documents import Document
from megatron_spell.types.play import LETTERS, ParsedQuestion, TaskName

SPACE = "\u2581"
FRAGMENT_TOKENS = (7, 10)
ANSWER_WORDS = 3  # the convention: an answer is the next three words
OPTION_WORDS = 2  # and an option the next two
FOLLOWING_WORDS = 7  # kept of what follows a fragment, for answers that do not keep to the convention
NUMBER_FRAGMENT_TOKENS = (4, 11)
MAX_ANSWER_TOKENS = 12  # as in the run's settings
MAX_TRIES = 40
_UNCLEAN = re.compile(r"[\\`\x00-\x1f\x7f\ufffd]")
_SAYS_SOMETHING = re.compile(r"\w.*\w")
_NUMBER = re.compile(r"(?<![\w.])[1-9]\d{0,3}(\.\d{1,2})?(?![\w.]*\w)")


@dataclass(frozen=True, slots=True)
class LookUp:
    """A question, its answer, and the index of the document that holds both."""

    task: TaskName
    question: str
    answer: str
    document: int
    options: tuple[str, str, str, str] | None = None
    letter: str | None = None
    following: tuple[str, ...] = ()  # the words after the fragment, the answer's and more

    @property
    def parsed(self) -> ParsedQuestion:
        return ParsedQuestion(self.question, self.letter or self.answer, self.options)


class Spans:
    """Cuts fragments out of tokenised documents at the beginnings of words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces = tokenizer.pretrained.convert_ids_to_tokens(range(tokenizer.vocab_size))

    def pieces(self, document: Document) -> list[str]:
        return [self._pieces[i] for i in document.token_ids_T.tolist()]

    def text(self, document: Document, start: int, stop: int) -> str:
        return self._tokenizer.decode(document.token_ids_T[start:stop]).strip()

    def num_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode_quoted(text))

    def word_starts(self, document: Document) -> list[int]:
        """Positions where a word begins, and the end of the document."""
        pieces = self.pieces(document)
        return [i for i, piece in enumerate(pieces) if piece.startswith(SPACE)] + [len(pieces)]

    def words(self, document: Document, start: int, num_words: int) -> tuple[str, ...]:
        """The words from `start`, at most `num_words`; fewer at the end of the document."""
        starts = [i for i in self.word_starts(document) if i >= start][: num_words + 1]
        return tuple(self.text(document, i, j) for i, j in pairwise(starts))

    def span(self, document: Document, start: int, num_tokens: tuple[int, int], rng: random.Random) -> int | None:
        """A word's end at about `num_tokens` (least, most) after `start`; None when the document has none there."""
        least, most = num_tokens
        ends = [i for i in self.word_starts(document) if start + least <= i <= start + most]
        return rng.choice(ends) if ends else None


def clean(text: str) -> bool:
    """Whether `text` says something and can stand in a JSON string with no more than its quotation marks escaped."""
    return _SAYS_SOMETHING.search(text) is not None and not _UNCLEAN.search(text)


def look_up(
    task: TaskName, documents: Sequence[Document], spans: Spans, rng: random.Random, letter: str | None = None
) -> LookUp | None:
    """A question of `task` on one of the documents; None when none was found. `letter` is the right option's."""
    if task is TaskName.MATH_QA:
        return _number(documents, spans, rng)
    num_words = ANSWER_WORDS if task is TaskName.GENERAL_QA else OPTION_WORDS
    phrase = _phrase(documents, spans, rng, num_words)
    if phrase is None or task is TaskName.GENERAL_QA:
        return phrase
    return _with_options(phrase, documents, spans, rng, letter or rng.choice(LETTERS))


def _phrase(documents: Sequence[Document], spans: Spans, rng: random.Random, num_words: int) -> LookUp | None:
    for _ in range(MAX_TRIES):
        index = rng.randrange(len(documents))
        document = documents[index]
        middle = spans.span(document, start := rng.choice(spans.word_starts(document)), FRAGMENT_TOKENS, rng)
        following = () if middle is None else spans.words(document, middle, FOLLOWING_WORDS)
        if middle is None or len(following) < num_words:
            continue
        question, answer = spans.text(document, start, middle), " ".join(following[:num_words])
        if clean(question) and clean(answer) and spans.num_tokens(answer) <= MAX_ANSWER_TOKENS:
            return LookUp(TaskName.GENERAL_QA, question, answer, index, following=following)
    return None


def _number(documents: Sequence[Document], spans: Spans, rng: random.Random) -> LookUp | None:
    """The fragment before a number; tokens of a number are single digits, so its place is found in the text."""
    found = [place for index, document in enumerate(documents) for place in _number_places(index, document, spans)]
    rng.shuffle(found)
    for index, position, number in found:
        document = documents[index]
        least, most = NUMBER_FRAGMENT_TOKENS
        starts = [i for i in spans.word_starts(document) if position - most <= i <= position - least]
        if not starts:
            continue
        question = spans.text(document, rng.choice(starts), position)
        if clean(question):
            return LookUp(TaskName.MATH_QA, question, number, index)
    return None


def numbers_in(documents: Sequence[Document], spans: Spans) -> list[str]:
    return [number for i, document in enumerate(documents) for _, _, number in _number_places(i, document, spans)]


def _number_places(index: int, document: Document, spans: Spans) -> list[tuple[int, int, str]]:
    pieces = spans.pieces(document)
    places = []
    for position in spans.word_starts(document)[:-1]:
        rest = "".join(pieces[position : position + 10]).replace(SPACE, " ").lstrip()
        match = _NUMBER.match(rest)
        if position and match:
            places.append((index, position, match.group()))
    return places


def _with_options(
    phrase: LookUp, documents: Sequence[Document], spans: Spans, rng: random.Random, letter: str
) -> LookUp | None:
    """The phrase's answer among three spans from elsewhere; no two options end alike."""
    options = [phrase.answer]
    for _ in range(MAX_TRIES):
        document = rng.choice(documents)
        words = spans.words(document, rng.choice(spans.word_starts(document)), OPTION_WORDS)
        text = " ".join(words)
        if len(words) == OPTION_WORDS and clean(text) and all(text[-3:] != option[-3:] for option in options):
            options.append(text)
        if len(options) == len(LETTERS):
            break
    else:
        return None
    place = LETTERS.index(letter)
    options[0], options[place] = options[place], options[0]
    return replace(phrase, task=TaskName.MULTIPLE_CHOICE, options=tuple(options), letter=letter)
