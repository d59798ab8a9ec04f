"""General question answering: a short text is the answer."""

from typing import Any

from megatron_spell.roles.parsing import bare, first_line, says_something, without_answer_prefix
from megatron_spell.types.play import Outcome, ParsedQuestion
from megatron_spell.types.prompts import neutralise

MAX_ANSWER_CHARS = 400  # twice what a reference answer of 40 tokens takes; longer ones explain, they do not answer


def read_question(found: dict[str, Any]) -> ParsedQuestion | Outcome:
    """Both fields must be texts that say something."""
    question, answer = found.get("question"), found.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        return Outcome.BAD_FORMAT
    question, gold = neutralise(question).strip(), without_answer_prefix(neutralise(answer)).strip()
    if not says_something(question) or not says_something(gold):
        return Outcome.BAD_FORMAT
    return ParsedQuestion(question=question, gold=gold)


def read_answer(statement: str) -> str | None:
    """The first line of the statement; None when it says nothing or is longer than MAX_ANSWER_CHARS."""
    answer = bare(" ".join(neutralise(first_line(statement)).split()))
    return answer if len(answer) <= MAX_ANSWER_CHARS and says_something(answer) else None
