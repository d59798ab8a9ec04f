"""Reading what a model wrote: thinking, fenced JSON, the final statement. Linear in the length of the text."""

import json
import re
from collections import deque
from typing import Any

MAX_STATEMENT_CHARS = 2000  # of what follows "answer is"; nothing that matters stands further on
_TAIL_CHARS = 100_000  # a final statement is looked for in this much of the end

_MAX_FENCES = 16  # a failed try costs the length of the text (JSONDecodeError counts lines), so tries are bounded
_FENCE = re.compile(r"```json\b\s*", re.IGNORECASE)
_SPACE = re.compile(r"\s*")
# Emphasis may stand between the two words: "the **answer** is".
_ANSWER_IS = re.compile(r"\banswer[\s*_]{1,8}is\b", re.IGNORECASE)
# Only at the beginning of a line: "**Final answer:** 5".
_ANSWER_COLON = re.compile(
    r"^[ \t*_#>]{0,16}(?:the[ ])?(?:(?:final|correct)[ ])?answer[ *_]{0,8}:", re.IGNORECASE | re.MULTILINE
)
_BOXED = re.compile(r"\\boxed\s{0,4}\{")
_PREFIX = re.compile(r"\s*(?:(?:the|my)\s{1,8})?(?:(?:correct|final)\s{1,8})?answer\s{1,8}is\b[\s:]*", re.IGNORECASE)


def after_thinking(text: str) -> str | None:
    """What follows the last `</think>`; all of it when there is none; None when thinking was opened and not closed.

    An opening tag is not needed: some chat templates write it into the prompt.
    """
    rest = text.rpartition("</think>")[2]
    return None if "<think>" in rest else rest


def json_object(text: str) -> dict[str, Any] | None:
    """The last closed ```json block that holds an object, else the whole text as one; None when neither does.

    Only the last _MAX_FENCES openings of a block are looked at.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    for fence in reversed(deque(_FENCE.finditer(text), maxlen=_MAX_FENCES)):
        found = _decode(decoder, text, fence.end(), closing="```")
        if found is not None:
            return found
    return _decode(decoder, text, _skip_space(text, 0), closing="")


def _decode(decoder: json.JSONDecoder, text: str, start: int, closing: str) -> dict[str, Any] | None:
    """The object that begins at `start` and is followed by `closing`, or by the end of the text when that is empty."""
    if not text.startswith("{", start):
        return None
    try:
        found, stop = decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    stop = _skip_space(text, stop)
    closed = text.startswith(closing, stop) if closing else stop == len(text)
    return found if closed and isinstance(found, dict) else None


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def says_something(text: str) -> bool:
    """Whether there is a letter or digit in `text`; the "..." of an example that was copied has none."""
    return any(map(str.isalnum, text))


def without_answer_prefix(text: str) -> str:
    """`text` without a leading "The correct answer is"."""
    match = _PREFIX.match(text)
    return text[match.end() :] if match else text


def final_statement(text: str) -> str | None:
    """What follows the last "answer is", whatever its case; without one, the last `\\boxed{...}`; without that, what
    follows the last "Answer:" that begins a line; None without any.

    At most MAX_STATEMENT_CHARS characters, cut nowhere else.
    """
    tail = text[-_TAIL_CHARS:]
    for marker in (_ANSWER_IS, _BOXED, _ANSWER_COLON):
        matches = list(marker.finditer(tail))
        if matches:
            start = matches[-1].start() if marker is _BOXED else matches[-1].end()
            return tail[start : start + MAX_STATEMENT_CHARS]
    return None


_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s{0,4}\{([^{}]*)\}\s{0,4}\{([^{}]*)\}")
_LATEX_MARK = re.compile(r"\\(?:[()\[\],!; ]|left\b|right\b|displaystyle\b)|\\(?=[%$&#])|(?<=[0-9])\{,\}(?=[0-9])")
_LATEX_WRAPPER = re.compile(r"\\(?:boxed|text|textbf|textrm|mathrm|mathbf|mathit|underline)\s{0,4}\{([^{}]*)\}")
_LATEX_ALMOST = re.compile(r"\\(?:approx|simeq|sim)\b")
# As in Markdown: no space inside the dollars and no digit behind, so that "$5 to $6" stays money.
_INLINE_MATH = re.compile(r"(?<!\\)\${1,2}(?=[^\s$])((?:\\\$|[^$\n]){1,400})(?<=[^\s\\])\${1,2}(?![0-9])")
_LEADING_MARKS = " \t\n\r:*_`\"'\u201c\u201d\u2018\u2019="
_TRAILING_MARKS = " \t\n\r*_`\"'\u201c\u201d\u2018\u2019$.!,;:"


def first_line(statement: str) -> str:
    """The first line of a final statement that says something, without emphasis, quotes and LaTeX wrappers."""
    return _without_latex(statement).lstrip(_LEADING_MARKS).partition("\n")[0].replace("**", "").replace("`", "")


def _without_latex(statement: str) -> str:
    statement = _INLINE_MATH.sub(lambda math: _without_parentheses(math[1]), statement)
    statement = _LATEX_FRACTION.sub(r" \1/\2", statement)
    statement = _LATEX_MARK.sub(lambda mark: "," if mark[0] == "{,}" else "", statement)
    statement = _LATEX_ALMOST.sub("\u2248", statement)
    for _ in range(3):  # wrappers nest: \boxed{\text{...}}
        statement = _LATEX_WRAPPER.sub(r"\1", statement)
    return statement


def bare(line: str) -> str:
    """`line` without marks around it and without a pair of parentheses around the whole of it."""
    line = line.lstrip(_LEADING_MARKS).rstrip(_TRAILING_MARKS)
    stripped = _without_parentheses(line)
    return line if stripped == line else stripped.lstrip(_LEADING_MARKS).rstrip(_TRAILING_MARKS)


def _without_parentheses(text: str) -> str:
    return text[1:-1] if text.startswith("(") and text.find(")") == len(text) - 1 else text
