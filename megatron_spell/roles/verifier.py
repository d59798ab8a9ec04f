"""The verifier: says whether an answer and the reference answer mean the same, without the documents."""

from megatron_spell.roles.parsing import after_thinking
from megatron_spell.roles.parts import question_parts, quoted
from megatron_spell.roles.templates import Templates
from megatron_spell.types.play import ParsedQuestion
from megatron_spell.types.prompts import Prompt, Quoted

YES, NO = "[[YES]]", "[[NO]]"


def verifier_prompt(templates: Templates, question: ParsedQuestion, answer: str) -> Prompt:
    """The question, the answer and the reference answer."""
    told = question_parts(templates, question)
    return templates.fill("verifier", question=told, answer=undecided(answer), gold=undecided(question.gold))


def undecided(text: str) -> Quoted:
    """Without the decisions in it: an answer that carries one would put it into the verifier's mouth."""
    return quoted(text.replace(YES, "YES").replace(NO, "NO"))


def parse_vote(text: str, *, finished: bool = True) -> bool | None:
    """True for [[YES]], False for [[NO]]; None when neither or both stand after the thinking, or it was cut off."""
    said = after_thinking(text) if finished else None
    if said is None or (YES in said) == (NO in said):
        return None
    return YES in said
