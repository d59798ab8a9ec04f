"""Failures of the released scorers that must never return: text in, verdict out, through reading and rule together."""

import pytest

from megatron_spell.rewards.matching import score
from megatron_spell.rewards.voting import majority, trainable
from megatron_spell.roles.questioner import parse_question
from megatron_spell.roles.responder import parse_answer
from megatron_spell.roles.verifier import parse_vote
from megatron_spell.types.play import Outcome, TaskName

GENERAL, MATH, CHOICE = TaskName


def verdict(task, said, gold):
    return score(task, parse_answer(said, task), gold, tolerance=0.0015)


@pytest.mark.parametrize("said", ["\\boxed{()}", "the answer is __import__('os').abort()", "the answer is 9**9**9**9"])
def test_model_text_is_not_evaluated_and_does_not_raise(said):
    assert verdict(MATH, said, "5") == 0.0


@pytest.mark.parametrize(
    ("stated", "gold"),
    [("-5.2", "5.2"), ("5.2", "-5.2"), ("1250", "12.5"), ("5.2", "5200000"), ("0.0001", "0.0009"), ("1", "1e-05")],
)
def test_sign_scale_and_small_values_count(stated, gold):
    assert verdict(MATH, f"The answer is {stated}.", gold) == 0.0


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("The answer is approximately 5.2", "5.2"),
        ("The answer is -$5.2", "-5.2"),
        ("\\boxed{3} is a step; the answer is 5.2", "5.2"),
        ("The answer is 0.00001", "1e-05"),
    ],
)
def test_numbers_that_were_not_readable_are_read(said, gold):
    assert verdict(MATH, said, gold) == 1.0


@pytest.mark.parametrize(
    ("stated", "gold"),
    [("2019", "1"), ("not known", "no"), ("Paris, London, Rome", "Paris"), ("52", "5.2"), ("5.2", "52")],
)
def test_cover_match_keeps_to_words_and_refuses_lists(stated, gold):
    assert verdict(GENERAL, f"The answer is {stated}", gold) == 0.0


@pytest.mark.parametrize("said", ["The answer is\nParis", "THE ANSWER IS PARIS.", "Answer is: **Paris**"])
def test_the_answer_may_stand_on_the_next_line_or_in_capitals(said):
    assert verdict(GENERAL, said, "Paris") == 1.0


@pytest.mark.parametrize("fragment", ["The answer is", "the", "The correct answer is P"])
def test_fragments_of_the_gold_do_not_win(fragment):
    assert verdict(GENERAL, f"{fragment}\nThe answer is {fragment}", "The answer is Paris") == 0.0


def test_a_letter_inside_a_word_is_no_choice_and_an_article_does_not_hide_one():
    assert verdict(CHOICE, "The answer is ACME", "A") == 0.0
    assert verdict(CHOICE, "The answer is a clear decline, hence (C)", "C") == 1.0


@pytest.mark.parametrize("task", TaskName)
def test_cut_off_thinking_without_an_opening_tag_is_not_scored(task):
    assert parse_answer("Let me see, perhaps the answer is 5, or", task, finished=False) is None


@pytest.mark.parametrize("said", ["NOT the same", "NOTE", "NO", "YES", "They differ: NO, not [[yes]]"])
def test_bare_words_are_no_votes(said):
    assert parse_vote(said) is None


def test_ties_and_invalid_votes_do_not_depend_on_the_order():
    assert majority([True, False]) is majority([False, True]) is False
    assert majority([None, None, None, True, True]) is True


def test_a_majority_against_the_rule_does_not_train_the_verifier():
    assert not trainable([True] * 7 + [False], 0.0)


@pytest.mark.parametrize(("answer", "task"), [('"0"', MATH), ('"unknown"', MATH), (f'"{"w " * 41}"', GENERAL)])
def test_unusable_answers_are_told_apart_from_format_faults(answer, task):
    said = f'```json\n{{"question": "q", "answer": {answer}}}\n```'
    parsed = parse_question(
        said, task, finished=True, num_answer_tokens=lambda text: len(text.split()), max_answer_tokens=40
    )
    assert parsed == Outcome.UNUSABLE_ANSWER
