"""The Python language reference that every interpreter carries, as short prose documents."""

import re
from collections.abc import Iterator

from megatron_spell.data.errors import SourceError
from megatron_spell.data.sections import is_heading, pack

DEFAULT_MAX_CHARS = 280
_MIN_CHARS = 80
_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*?(?=[^\n])")
_LIST_MARK = re.compile(r"^(?:[*+-]|\d+\.|\[\d+\])\s+")
_WORD = re.compile(r"[\"'(*]{0,2}[A-Za-z][a-z'\u2019-]*[\"'.,;:)*]{0,3}")
_RULER = re.compile(r"[-=*~]\[|[|]|\+-{3}|::=|>>>")
_MIN_WORDS = 6
_WORD_SHARE = 0.7


def topic_sections(max_chars: int | None = None) -> Iterator[tuple[str, int, str]]:
    """(topic, section number from 1, text) of `pydoc_data.topics`: its prose, without code, grammar and tables.

    Topics repeat each other ("specialnames" holds all of "attribute-access"): a paragraph belongs to the shortest
    topic that has it, so that no two topics share text and either may be held out. Raises SourceError.
    """
    topics = _topics()
    seen: set[str] = set()
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        number = 0
        for chapter in _chapters(topics[name], seen):
            for text in pack(chapter, max_chars or DEFAULT_MAX_CHARS):
                if len(text) >= _MIN_CHARS:
                    number += 1
                    yield name, number, text.replace("\n\n", "\n")


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise SourceError(
            "source 'python-topics': this interpreter comes without pydoc_data; use a full installation of Python"
        ) from None
    return topics


def _chapters(topic: str, seen: set[str]) -> Iterator[list[str]]:
    """Lists of unseen prose paragraphs; a heading begins the next list."""
    chapter: list[str] = []
    for paragraph in _PARAGRAPHS.split(topic):
        if is_heading(paragraph):
            yield chapter
            chapter = []
            continue
        prose = _LIST_MARK.sub("", " ".join(paragraph.split()))
        if prose not in seen and _is_prose(prose):
            seen.add(prose)
            chapter.append(prose)
    yield chapter


def _is_prose(paragraph: str) -> bool:
    pieces = paragraph.split()
    words = sum(_WORD.fullmatch(piece) is not None for piece in pieces)
    return words >= _MIN_WORDS and words >= _WORD_SHARE * len(pieces) and not _RULER.search(paragraph)
