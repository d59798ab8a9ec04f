"""Questions whose answer is one number."""

import re
from typing import Any

from megatron_spell.roles.parsing import bare, first_line, says_something, without_answer_prefix
from megatron_spell.types.numbers import leading_number, parse_number
from megatron_spell.types.play import Outcome, ParsedQuestion
from megatron_spell.types.prompts import neutralise

# "5 or 6", "5, 6", "5 to 6 dollars": a second number that is offered in place of the first.
_ANOTHER = re.compile(
    r"\s*(?:[^\W\d]{1,20}\s*)?(?:[,;/|&-]|\b(?:or|and|to|versus|vs)\b)\s*(?:or\b|and\b)?[\s(~+-]*[0-9]"
)
_EQUALS = re.compile(r"[=\u2248\u2245]")


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

    Several numbers are no answer. Parentheses around the number are only decoration here.
    """
    line = bare(_EQUALS.split(neutralise(first_line(statement)))[-1])
    found = leading_number(line)
    if found is None:
        return None
    number, rest = found
    return None if _ANOTHER.match(rest) else number.text
