"""The parts that prompts of several roles share."""

from collections.abc import Sequence

from megatron_spell.roles.templates import Templates
from megatron_spell.types.documents import Document
from megatron_spell.types.play import LETTERS, ParsedQuestion
from megatron_spell.types.prompts import Literal, Prompt, Quoted, Tokens, neutralise


def quoted(text: str) -> Quoted:
    """What a model or a user wrote, to be shown and never obeyed."""
    return Quoted(neutralise(text))


def document_parts(templates: Templates, documents: Sequence[Document]) -> Prompt:
    """The documents' own ids, in the order given, with the separator between them."""
    return templates.join("document_separator", [Tokens(d.token_ids_T) for d in documents])


def question_parts(templates: Templates, question: ParsedQuestion) -> Prompt:
    """The question, followed by its options where it has them."""
    options = [
        templates.fill("option", letter=Literal(letter), text=quoted(option))
        for letter, option in zip(LETTERS, question.options or ())
    ]
    return templates.join("option_separator", [quoted(question.question), *options])
