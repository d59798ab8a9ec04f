"""The questioner: asked to invent one question on the documents it is shown."""

from collections.abc import Callable, Sequence

from megatron_spell.roles.parsing import after_thinking, json_object
from megatron_spell.roles.parts import document_parts, quoted
from megatron_spell.roles.tasks import general_qa, math_qa, multiple_choice
from megatron_spell.roles.templates import Templates
from megatron_spell.types.documents import Document
from megatron_spell.types.play import LETTERS, Outcome, ParsedQuestion, QuestionAnswer, TaskName
from megatron_spell.types.prompts import Literal, Part, Prompt

_READERS = {
    TaskName.GENERAL_QA: general_qa.read_question,
    TaskName.MATH_QA: math_qa.read_question,
    TaskName.MULTIPLE_CHOICE: multiple_choice.read_question,
}
# No tokenizer packs this many characters into a token on average; longer answers need not be tokenised to be refused.
_MAX_CHARS_PER_TOKEN = 64


def questioner_prompt(
    templates: Templates,
    task: TaskName,
    documents: Sequence[Document],
    examples: Sequence[QuestionAnswer] = (),
    target_letter: str | None = None,
) -> Prompt:
    """The documents, then the task; with `examples` the task asks for a harder question than those.

    `target_letter` is the letter that a multiple-choice question must make right; other tasks do not use it.
    Raises ValueError when multiple choice has none.
    """
    slots: dict[str, Part | Sequence[Part]] = {"documents": document_parts(templates, documents)}
    if examples:
        told = [templates.fill("example", question=quoted(e.question), answer=quoted(e.answer)) for e in examples]
        slots["examples"] = templates.join("example_separator", told)
    if task == TaskName.MULTIPLE_CHOICE:
        if target_letter not in LETTERS:
            raise ValueError(f"target_letter = {target_letter!r}: a multiple-choice question needs one of {LETTERS}")
        slots["target_letter"] = Literal(target_letter)
    return templates.fill(f"questioner_{task}{'_history' if examples else ''}", **slots)


def parse_question(
    text: str,
    task: TaskName,
    *,
    finished: bool,
    num_answer_tokens: Callable[[str], int],
    max_answer_tokens: int,
) -> ParsedQuestion | Outcome:
    """The question in a questioner's output, or the Outcome that says why there is none.

    UNFINISHED when the output was cut off (`finished` is False) or its thinking never ended; BAD_FORMAT when there is
    no JSON object with the fields of the task; UNUSABLE_ANSWER when the reference answer is too long, or is zero or no
    number where a number is asked for.
    """
    said = after_thinking(text)
    if said is None or not finished:
        return Outcome.UNFINISHED
    found = json_object(said)
    if found is None:
        return Outcome.BAD_FORMAT
    question = _READERS[task](found)
    if isinstance(question, Outcome):
        return question
    too_long = len(question.gold) > _MAX_CHARS_PER_TOKEN * max_answer_tokens
    if too_long or num_answer_tokens(question.gold) > max_answer_tokens:
        return Outcome.UNUSABLE_ANSWER
    return question
