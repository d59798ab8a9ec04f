"""Cutting a long text into documents: at headings and blank lines, then at sentence ends, then at spaces."""

import re
from collections.abc import Iterable, Iterator

_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]{0,2}\s+")
_ATX_HEADING = re.compile(r"#{1,6} ")
_UNDERLINE = re.compile(r"([=\-~*^#+\"'.:_])\1{2,}[ \t]*")
_HEADING_CHARS = 120


def cut(text: str, max_chars: int) -> list[str]:
    """`text` in its order as pieces of at most `max_chars` characters.

    A heading (Markdown's `#`, or a line underlined with punctuation) starts a new piece when the one before is at
    least half full. Between pieces only whitespace is lost.
    """
    paragraphs = [p for p in _BLANK_LINES.split(text) if p.strip()]
    return [piece for piece in pack(paragraphs, max_chars, starts=is_heading) if piece.strip()]


def is_heading(paragraph: str) -> bool:
    lines = paragraph.strip().split("\n", 2)
    underlined = len(lines) >= 2 and _UNDERLINE.fullmatch(lines[1].strip()) is not None
    return (underlined and len(lines[0]) <= _HEADING_CHARS) or _ATX_HEADING.match(lines[0]) is not None


def pack(paragraphs: Iterable[str], max_chars: int, starts=lambda paragraph: False) -> Iterator[str]:
    """Whole paragraphs, joined by blank lines, as long as they fit; a paragraph that is too long is cut itself."""
    piece = ""
    for paragraph in paragraphs:
        fits = len(piece) + 2 + len(paragraph) <= max_chars
        if piece and fits and not (starts(paragraph) and 2 * len(piece) >= max_chars):
            piece = f"{piece}\n\n{paragraph}"
            continue
        if piece:
            yield piece
        *whole, piece = cut_paragraph(paragraph, max_chars)
        yield from whole
    if piece:
        yield piece


def cut_paragraph(paragraph: str, max_chars: int) -> list[str]:
    """Pieces of about equal length that end with sentences where those are short enough, else with words."""
    if len(paragraph) <= max_chars:
        return [paragraph]
    target = -(-len(paragraph) // -(-len(paragraph) // max_chars))
    pieces: list[str] = []
    piece = ""
    for part in _short_parts(paragraph, max_chars):
        joined = f"{piece} {part}"
        if piece and (len(joined) > max_chars or len(piece) >= target):
            pieces.append(piece)
            piece = part
        else:
            piece = joined if piece else part
    return [*pieces, piece]


def _short_parts(paragraph: str, max_chars: int) -> Iterator[str]:
    for sentence in _sentences(paragraph):
        while len(sentence) > max_chars:
            space = sentence.rfind(" ", max_chars // 2, max_chars + 1)
            stop = space if space > 0 else max_chars
            yield sentence[:stop]
            sentence = sentence[stop:].lstrip()
        if sentence:
            yield sentence


def _sentences(paragraph: str) -> Iterator[str]:
    start = 0
    for end in _SENTENCE_END.finditer(paragraph):
        stop = end.end()
        yield paragraph[start:stop].rstrip()
        start = stop
    yield paragraph[start:]
