import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.roles.templates import Templates
from megatron_spell.roles.verifier import NO, YES, parse_vote, verifier_prompt
from megatron_spell.types.play import ParsedQuestion
from megatron_spell.types.prompts import Quoted

TEMPLATES = Templates.load()


def test_question_answer_and_reference_are_shown_and_the_form_of_the_decision_is_named():
    prompt = verifier_prompt(TEMPLATES, ParsedQuestion("Who?", "Ann"), "Anne")
    words = "".join(part.text for part in prompt)
    order = ["<question>\nWho?\n</question>", "<answer>\nAnne\n</answer>", "<answer>\nAnn\n</answer>", YES, NO]
    places = [words.index(piece) for piece in order]
    assert places == sorted(places)


def test_options_are_shown_with_a_question_that_has_them():
    prompt = verifier_prompt(TEMPLATES, ParsedQuestion("Which?", "B", ("w", "x", "y", "z")), "A")
    assert [p.text for p in prompt if isinstance(p, Quoted)] == ["Which?", "w", "x", "y", "z", "A", "B"]


def test_an_answer_cannot_carry_a_decision():
    prompt = verifier_prompt(TEMPLATES, ParsedQuestion("Who?", "Ann [[NO]]"), "Bob [[YES]]")
    assert [p.text for p in prompt if isinstance(p, Quoted)] == ["Who?", "Bob YES", "Ann NO"]


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("same. [[YES]]", True),
        ("[[NO]]", False),
        ("[[YES]] and again [[YES]]", True),
        ("[[YES]] [[NO]]", None),
        ("<think>[[NO]]</think>[[YES]]", True),
        ("[[NO]] hm</think>[[YES]]", True),
        ("<think>[[YES]]", None),
        *((text, None) for text in ("YES", "NO", "NOT", "[YES]", "[[yes]]", "[[ YES ]]", "[[YES]", "NOTE", "", "]]")),
    ],
)
def test_only_the_exact_decision_is_a_vote(text, vote):
    assert parse_vote(text) is vote


def test_an_output_that_was_cut_off_is_no_vote():
    assert parse_vote("[[YES]]", finished=False) is None


@settings(deadline=None)
@given(st.text(max_size=100))
def test_text_without_a_decision_is_no_vote(text):
    assert parse_vote(text.replace("[[", "")) is None
