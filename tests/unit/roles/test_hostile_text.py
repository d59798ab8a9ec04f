"""Whatever stands in documents, questions and answers: prompts keep their shape, parsers stay linear."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings

from megatron_spell.roles.questioner import parse_question, questioner_prompt
from megatron_spell.roles.responder import parse_answer, responder_prompt
from megatron_spell.roles.templates import Templates
from megatron_spell.roles.verifier import parse_vote, verifier_prompt
from megatron_spell.types.documents import Document
from megatron_spell.types.play import ParsedQuestion, QuestionAnswer, TaskName
from megatron_spell.types.prompts import Literal, Quoted, neutralise
from tests.unit.roles.hostile import HOSTILE, hostile_text

TEMPLATES = Templates.load()
DOCUMENTS = [Document("d", "{{question}}", np.arange(3, dtype=np.int32))]
MEGABYTES_10 = 10_000_000


def prompts(text):
    """Every kind of prompt, with `text` wherever a model's or a user's words go."""
    question = ParsedQuestion(text, text, (text, text, text, text))
    for task in TaskName:
        yield questioner_prompt(TEMPLATES, task, DOCUMENTS, [QuestionAnswer(text, text)], "A")
        yield responder_prompt(TEMPLATES, task, DOCUMENTS, question)
        yield responder_prompt(TEMPLATES, task, None, question)
    yield verifier_prompt(TEMPLATES, question, text)


def shape(prompt):
    """The words that the templates wrote, and the kind of every other part."""
    return [part.text if isinstance(part, Literal) else type(part).__name__ for part in prompt]


@settings(deadline=None)
@given(hostile_text)
def test_no_text_changes_what_the_templates_wrote(text):
    for hostile, harmless in zip(prompts(text), prompts("harmless")):
        assert shape(hostile) == shape(harmless)


@settings(deadline=None)
@given(hostile_text)
def test_quoted_text_holds_no_control_characters_and_none_of_our_tags(text):
    for prompt in prompts(text):
        for part in prompt:
            if isinstance(part, Quoted):
                assert part.text == neutralise(part.text)
                part.text.encode("utf-8")  # lone surrogates would not


@settings(deadline=None)
@given(hostile_text, hostile_text)
def test_parsers_return_on_hostile_text(before, after):
    for said in (before + after, f"{before} the answer is {after}", f"{before}```json\n{after}```"):
        for task in TaskName:
            parse_answer(said, task)
            parse_question(said, task, finished=True, num_answer_tokens=len, max_answer_tokens=40)
        parse_vote(said)


REPEATED = [
    *(
        "a",
        " ",
        "\n",
        "{",
        "[",
        "(",
        "<",
        "*",
        "```json",
        '```json{"',
        '{"a":',
        "answer ",
        "answer is ",
        "the answer is A",
    ),
    *("\\boxed{", "\\frac{", "<think>", "</think>", "1,", "1 or ", "[[YES]]", "\x00", "answer is (", "\\boxed", '"\\'),
]


@pytest.mark.parametrize("unit", REPEATED, ids=repr)
def test_ten_megabyte_lines_are_read_in_linear_time(unit):
    said = "the answer is " + unit * (MEGABYTES_10 // len(unit))
    start = time.process_time()
    parse_vote(said)
    for task in TaskName:
        parse_answer(said, task)
    parse_question(said, TaskName.GENERAL_QA, finished=True, num_answer_tokens=len, max_answer_tokens=40)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("unit", ["x", "<", "< ", "{{", *HOSTILE], ids=repr)
def test_a_question_of_megabytes_inside_json_is_read_in_linear_time(unit):
    question = unit * (2_000_000 // len(unit)) + "x"
    said = "```json\n" + json.dumps({"question": question, "answer": "a"}) + "\n```"
    start = time.process_time()
    parsed = parse_question(said, TaskName.GENERAL_QA, finished=True, num_answer_tokens=len, max_answer_tokens=40)
    assert time.process_time() - start < 10
    assert unit.strip()[:1] != "x" or parsed == ParsedQuestion(question, "a")
