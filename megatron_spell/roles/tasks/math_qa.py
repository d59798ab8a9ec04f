"""Questions whose answer is one number."""

import re
from typing import Any

from megatron_spell.roles.parsing import bare, first_line, says_something, without_answer_prefix
from megatron_spell.types.numbers import Number, leading_number, open_word, parse_number
from megatron_spell.types.play import Outcome, ParsedQuestion
from megatron_spell.types.prompts import neutralise

_EQUALS = re.compile(r"(?<![<>!])[=\u2248\u2245]")
_DERIVATION = re.compile(r"(?<=[^\s(])\s{0,4}\([^()]{0,200}=[^()]{0,200}\)")  # "5 (= 10 / 2)"
# What goes on is still the number, or has to be calculated first: "1 234", "1.2.3", "5'3", "5 x 10", "5-", "5+".
_GOES_ON = re.compile(
    r"[.,'\u2019_:^]\s?[0-9]|[-+](?:\s|$)|[^\W\d_]{1,3}[0-9]|\s{1,4}[0-9]"
    r"|\s{0,4}(?:[\u00d7xX*\u00b7\u22c5/\u00f7+^]|\u00b1|[eE]|\\times|\\cdot)\s{0,4}[-+(]?[0-9]"
)
# "5 or more", "5 or maybe 6", "5 and a half".
_HEDGED = re.compile(
    r"\s{0,4}(?:[^\W\d]{1,20}\s{1,4}){0,2}(?:or\s+(?:more|less|so|fewer|higher|lower|maybe|perhaps|possibly|even)"
    r"|and\s+(?:a|one|three)\s+(?:half|quarter|third))\b",
    re.IGNORECASE,
)
# Between two numbers, the second is offered in place of the first: "5 or 6", "5, 6", "5-6"; "5 dollars to 6 dollars".
_CONNECTOR = re.compile(r"[;|&]|[,/-](?![0-9])|(?<![0-9])[,/-]|(?i:\b(?:or|and|versus|vs|nor|maybe|perhaps)\b)")
_RANGE = re.compile(r"\s{0,4}(?:(?!rounded\b|equal\b|compared\b)[^\W\d]{1,20}\s{1,4}){0,2}to\s", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!vs)[.!?](?:\s|$)(?!\s*[0-9])")
_PLACES = re.compile(r"\s*(?:decimal|significant|digit|d\.?p\b|sig)", re.IGNORECASE)
_YEARS = range(1900, 2101)
_SAME = 0.01  # "0.125 or 12.5%", "0.1253, i.e. 12.5%": the same number once more


def read_question(found: dict[str, Any]) -> ParsedQuestion | Outcome:
    """The answer, a text or a JSON number, must be one number other than zero."""
    question, answer = found.get("question"), found.get("answer")
    if not isinstance(question, str) or isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return Outcome.BAD_FORMAT
    question, gold = neutralise(question).strip(), without_answer_prefix(neutralise(str(answer))).strip()
    if not says_something(question) or not gold:
        return Outcome.BAD_FORMAT
    number = parse_number(gold)
    if number is None or number.value == 0:
        return Outcome.UNUSABLE_ANSWER
    return ParsedQuestion(question=question, gold=gold)


def read_answer(statement: str) -> str | None:
    """The number that the statement begins with, or ends in after its last equals sign, in plain writing.

    Several numbers are no answer, unless they are one and the same. Parentheses around the number are only decoration
    here. A word that leaves sign or scale open stays ("12% decrease"): the rule refuses that, the verifier may pass it.
    """
    line = _DERIVATION.sub("", bare(neutralise(first_line(statement))))
    line = bare(_EQUALS.split(line)[-1])
    found = leading_number(line)
    if found is None:
        return None
    number, rest = found
    if _goes_on(number, _SENTENCE_END.split(rest, maxsplit=1)[0]):
        return None
    word = open_word(number, rest)
    return number.text if word is None else f"{number.text} {word}"


def _goes_on(number: Number, rest: str) -> bool:
    """Whether `rest` changes the number or offers another one."""
    if _GOES_ON.match(rest) or _HEDGED.match(rest):
        return True
    connectors = [*_CONNECTOR.finditer(rest), *filter(None, [_RANGE.match(rest)])]
    return any(_is_rival(number, rest[: found.start()], rest[found.end() :]) for found in connectors)


def _is_rival(number: Number, between: str, after: str) -> bool:
    found = leading_number(after.lstrip(" ,."))
    if found is None or _PLACES.match(found[1]):
        return False
    other = found[0]
    is_year = not other.states_scale and other.written in _YEARS and any(map(str.isalpha, between))
    same = abs(other.value - number.value) <= _SAME * abs(number.value)
    return not is_year and not same
