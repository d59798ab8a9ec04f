"""Every failure of the reference's scorers, by name: whole responses and their verdicts, then what a round makes of it.

A case is (failure, task, what was said, the gold, the verdict). The released scorers give the other verdict, or none.
"""

from math import comb

import numpy as np
import pytest

from megatron_spell.config.schema import PlaySection, RewardSection
from megatron_spell.rewards.assign import assign_rewards
from megatron_spell.rewards.matching import guess_rate, score
from megatron_spell.rewards.voting import majority, trainable
from megatron_spell.roles.questioner import parse_question
from megatron_spell.roles.responder import parse_answer
from megatron_spell.roles.verifier import parse_vote
from megatron_spell.types.play import Answer, Completion, Draw, Judgment, Outcome, Role, Round, TaskName, Turn

GENERAL, MATH, CHOICE = TaskName

FAILURES = [
    ("model text is evaluated", MATH, "The answer is __import__('os').abort()", "5", 0),
    ("model text is evaluated: no time limit", MATH, "The answer is 9**9**9**9", "5", 0),
    ("model text is evaluated: a boxed empty tuple raises", MATH, "\\boxed{()}", "5", 0),
    ("model text is evaluated: a product counts", MATH, "The answer is 2*2.5", "5", 0),
    ("sign is ignored", MATH, "The answer is -5.2", "5.2", 0),
    ("sign is ignored: the other way", MATH, "The answer is 5.2", "-5.2", 0),
    ("scale is ignored: a hundred", MATH, "The answer is 1250", "12.5", 0),
    ("scale is ignored: a million", MATH, "The answer is 5.2", "5200000", 0),
    ("scale is ignored: a thousandth", MATH, "The answer is 5200", "5.2", 0),
    ("values below 0.001 are all equal", MATH, "The answer is 0.0001", "0.0009", 0),
    ("values below 0.001 are all equal: right ones stay right", MATH, "The answer is 0.0009", "0.0009", 1),
    ("1e-05 is read as 1", MATH, "The answer is 1", "1e-05", 0),
    ("1e-05 is read as 1: its own value", MATH, "The answer is 0.00001", "1e-05", 1),
    ("approximately is unreadable", MATH, "The answer is approximately 5.2", "5.2", 1),
    ("a sign before a currency is unreadable", MATH, "The answer is -$5.2", "-5.2", 1),
    ("a boxed step overrides the final sentence", MATH, "First \\boxed{3}. So the answer is 5.2", "5.2", 1),
    ("a boxed step overrides the final sentence: wrongly", MATH, "First \\boxed{5.2}. So the answer is 3", "5.2", 0),
    ("cover match by substring: 1 in 2019", GENERAL, "The answer is 2019", "1", 0),
    ("cover match by substring: no in not known", GENERAL, "The answer is not known", "no", 0),
    ("cover match by substring: part of a word", GENERAL, "The answer is unapproved", "approved", 0),
    ("listing candidates wins", GENERAL, "The answer is Paris, London, Rome", "Paris", 0),
    ("listing candidates wins: with or", GENERAL, "The answer is Paris or London", "London", 0),
    ("listing candidates wins: without a mark", GENERAL, "The answer is Paris London Rome", "London", 0),
    ("decimals vanish", GENERAL, "The answer is 52", "5.2", 0),
    ("decimals vanish: the other way", GENERAL, "The answer is 5.2", "52", 0),
    ("an answer on the next line is missed", GENERAL, "The answer is\nParis", "Paris", 1),
    ("a capitalised sentence is missed", GENERAL, "THE CORRECT ANSWER IS PARIS.", "Paris", 1),
    ("a sentence without article is missed", GENERAL, "Answer is: **Paris**", "Paris", 1),
    ("the letter of a word is a choice", CHOICE, "The answer is ACME", "A", 0),
    ("an article hides the choice", CHOICE, "The answer is a clear decline, hence (C)", "C", 1),
    ("fragments of the gold's sentence win", GENERAL, "The answer is the", "The answer is Paris", 0),
]


@pytest.mark.parametrize(
    ("task", "said", "gold", "verdict"), [pytest.param(*case, id=name) for name, *case in FAILURES]
)
def test_the_failure_is_gone(task, said, gold, verdict):
    assert score(task, parse_answer(said, task), gold, tolerance=0.0015) == verdict


@pytest.mark.parametrize("task", TaskName)
def test_cut_off_thinking_is_scored_where_the_template_opens_it(task):
    """The output holds no opening tag, so only `finished` tells thinking from answer."""
    assert parse_answer("Let me see, perhaps the answer is 5, or", task, finished=False) is None


@pytest.mark.parametrize("said", ["NOT the same", "NOTE", "NO", "YES", "They differ: NO, not [[yes]]"])
def test_bare_capitals_are_votes(said):
    assert parse_vote(said) is None


def test_ties_and_invalid_votes_depend_on_their_order():
    assert majority([True, False]) is majority([False, True]) is False
    assert majority([None, None, None, True, True]) is True


def read(answer: str, task: TaskName = MATH, **more):
    said = f'```json\n{{"question": "q", "answer": {answer}}}\n```'
    how = {"num_answer_tokens": lambda text: len(text.split()), "max_answer_tokens": PlaySection().max_answer_tokens}
    return parse_question(said, task, finished=True, **how | more)


@pytest.mark.parametrize("answer", ['"5 or 6"', '"12% decrease"', '"5 m"', '"1,25"', '"five"'])
def test_the_gold_is_never_checked_its_form_at_least_is(answer):
    """Whether it is true no scorer can know; a gold that could be read in two ways is refused and penalised."""
    assert read(answer) == Outcome.UNUSABLE_ANSWER


def test_a_wrong_gold_that_votes_agree_with_trains_the_verifier():
    """Only groups whose majority is the rule's verdict train it."""
    assert not trainable([True] * 7 + [False], 0.0)
    assert trainable([False] * 7 + [True], 0.0)


def test_one_lucky_blind_sample_makes_a_choice_ungrounded():
    """The reference draws one blind sample, which a quarter of all guesses hit; here luck rejects one in twenty."""
    settings = PlaySection()
    k, limit = settings.ground_samples, guess_rate(CHOICE) + settings.ground_margin_of(CHOICE)
    by_luck = sum(comb(k, hits) * 0.25**hits * 0.75 ** (k - hits) for hits in range(k + 1) if hits / k >= limit)
    assert by_luck == pytest.approx(0.0508, abs=1e-4)
    assert 1 / k >= guess_rate(GENERAL) + settings.ground_margin_of(GENERAL), "what cannot be guessed was known"
    assert guess_rate(GENERAL) == guess_rate(MATH) == 0.0


def turn(role: Role) -> Turn:
    return Turn(role, np.zeros(1, np.int32), Completion(np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", 0), "")


def test_false_positives_of_either_side_stand_but_the_rule_gives_none():
    """max(rule, vote): so the rule is strict, and a vote against a right verdict takes nothing away."""
    against = (Judgment(turn(Role.VERIFIER), vote=False),) * 8
    answers = (
        Answer(turn(Role.RESPONDER), "5.2", rule=1.0, judgments_V=against),
        Answer(turn(Role.RESPONDER), "-5.2", rule=0.0, judgments_V=against),
    )
    played = Round(Draw(0, "s", MATH, (0,), (0,)), Outcome.USABLE, answers_G=answers)
    assert [answer.reward for answer in assign_rewards(played, RewardSection()).answers_G] == [1.0, 0.0]


@pytest.mark.parametrize(("answer", "task"), [('"0"', MATH), ('"unknown"', MATH), (f'"{"w " * 41}"', GENERAL)])
def test_unusable_answers_are_dropped_without_a_penalty(answer, task):
    assert read(answer, task) == Outcome.UNUSABLE_ANSWER
    assert RewardSection().bad_format < 0


def test_the_prompt_says_twenty_tokens_and_the_filter_forty():
    """On purpose here too: the prompt asks for short answers, the penalty begins where they are twice as long."""
    assert not isinstance(read(f'"{"w " * 40}"', GENERAL), Outcome)
    assert read(f'"{"w " * 41}"', GENERAL) == Outcome.UNUSABLE_ANSWER
