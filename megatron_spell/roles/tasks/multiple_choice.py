"""Questions with four options; the answer is a letter."""

import re
from typing import Any

from megatron_spell.roles.parsing import first_line, says_something, without_answer_prefix
from megatron_spell.types.play import LETTERS, Outcome, ParsedQuestion
from megatron_spell.types.prompts import neutralise

_GOLD = re.compile(r"[(\[*\"']{0,3}([A-D])[)\]*\"'.:]{0,3}")
# A letter by itself: no part of a word ("ACME", "A-level"), nor the article ("A decline in revenue").
_LETTER = r"([A-D])(?!\w|['\u2019-]\w)(?!(?<=A)\s+(?!because|since|as|is|and|or|for|which|with|due|based|given)[a-z])"
_LEAD_WORD = (
    r"(?:the|option|choice|letter|answer|clearly|therefore|thus|most|likely|definitely|probably)\b[\s:*(\[]{0,4}"
)
_DIRECT = re.compile(rf"[\s*_(\[\"']{{0,6}}(?i:{_LEAD_WORD}){{0,4}}{_LETTER}")
_IN_PARENTHESES = re.compile(r"\(([A-D])\)")
# "A, B", "A or maybe B", "A) B)"; "(A) a rise, (B) a fall" further on.
_MAYBE = r"(?:(?:or|and|maybe|perhaps|possibly|also|even)\b\s*){0,3}"
_ANOTHER = re.compile(
    rf"[\s*)\].(\[]{{0,6}}(?:(?:[,;/|&]|\b(?:or|and)\b)\s*{_MAYBE}[\s*(\[]{{0,4}})?(?<!\w)[A-D](?!\w)(?!\s+[a-z])"
)
_ANOTHER_IN_PARENTHESES = re.compile(rf"(?:[,;/|&]|\b(?:or|and)\b)\s*{_MAYBE}[\s*]{{0,4}}\([A-D]\)")


def read_question(found: dict[str, Any]) -> ParsedQuestion | Outcome:
    """Exactly the options A-D, all different texts, and the letter of one of them."""
    question, options, answer = found.get("question"), found.get("options"), found.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str) or not isinstance(options, dict):
        return Outcome.BAD_FORMAT
    question, told = neutralise(question).strip(), _read_options(options)
    gold = _GOLD.fullmatch(without_answer_prefix(answer).strip())
    if not says_something(question) or told is None or gold is None:
        return Outcome.BAD_FORMAT
    return ParsedQuestion(question=question, gold=gold.group(1), options=told)


def _read_options(options: dict[str, Any]) -> tuple[str, str, str, str] | None:
    if set(options) != set(LETTERS) or not all(isinstance(text, str) for text in options.values()):
        return None
    a, b, c, d = _without_letters([neutralise(options[letter]).strip() for letter in LETTERS])
    distinct = {" ".join(text.casefold().split()) for text in (a, b, c, d)}
    return (a, b, c, d) if len(distinct) == len(LETTERS) and "" not in distinct else None


def _without_letters(texts: list[str]) -> list[str]:
    """Without "(A) ", "B. ", ... when every option repeats its own letter; the prompt writes them again."""
    found = [re.match(rf"\(?{letter}[).:]\s*", text) for letter, text in zip(LETTERS, texts)]
    return [text[m.end() :] if all(found) and m else text for text, m in zip(texts, found)]


def read_answer(statement: str) -> str | None:
    """The letter that the statement begins with, or the only one it has in parentheses; several are no answer."""
    line = first_line(statement)
    direct = _DIRECT.match(line)
    if direct and direct.group(1).isupper():
        more = _ANOTHER.match(line, direct.end()) or _ANOTHER_IN_PARENTHESES.search(line, direct.end())
        return None if more else direct.group(1)
    letters = set(_IN_PARENTHESES.findall(line))
    return letters.pop() if len(letters) == 1 else None
