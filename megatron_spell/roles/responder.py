"""The responder: answers a question from all documents of the set."""

from collections.abc import Sequence

from megatron_spell.roles.parsing import after_thinking, final_statement
from megatron_spell.roles.parts import document_parts, question_parts
from megatron_spell.roles.tasks import general_qa, math_qa, multiple_choice
from megatron_spell.roles.templates import Templates
from megatron_spell.types.documents import Document
from megatron_spell.types.play import ParsedQuestion, TaskName
from megatron_spell.types.prompts import Prompt

_READERS = {
    TaskName.GENERAL_QA: general_qa.read_answer,
    TaskName.MATH_QA: math_qa.read_answer,
    TaskName.MULTIPLE_CHOICE: multiple_choice.read_answer,
}


def responder_prompt(
    templates: Templates, task: TaskName, documents: Sequence[Document] | None, question: ParsedQuestion
) -> Prompt:
    """The documents, then the question; without documents (None) the fragment `no_documents` in their place."""
    told = templates.fill("no_documents") if documents is None else document_parts(templates, documents)
    return templates.fill(f"responder_{task}", documents=told, question=question_parts(templates, question))


def parse_answer(text: str, task: TaskName, *, finished: bool = True) -> str | None:
    """The answer that a responder's output ends in; None when it states none.

    It is what follows the last "answer is" after the thinking. An output that was cut off (`finished` is False) has
    no final answer: where the chat template opens the thinking, nothing else tells thinking from answer.
    """
    said = after_thinking(text) if finished else None
    statement = None if said is None else final_statement(said)
    return None if statement is None else _READERS[task](statement)
