import numpy as np
import pytest

from megatron_spell.config.schema import RewardSection
from megatron_spell.rewards.assign import assign_rewards
from megatron_spell.types.play import (
    Answer,
    Completion,
    Draw,
    Judgment,
    Outcome,
    ParsedQuestion,
    Role,
    Round,
    TaskName,
    Turn,
)

SETTINGS = RewardSection()


def turn(role):
    ids = np.arange(2, dtype=np.int32)
    return Turn(role, ids, Completion(ids, np.zeros(2, np.float32), "stop", 0), "text")


def votes(*given):
    return tuple(Judgment(turn(Role.VERIFIER), vote) for vote in given)


def answer(rule, parsed="x", judgments_V=()):
    return Answer(turn(Role.RESPONDER), parsed, rule, judgments_V=judgments_V)


def assigned(*answers_G, settings=SETTINGS):
    draw = Draw(3, "s", TaskName.GENERAL_QA, (0,), (0,))
    played = Round(draw, Outcome.SURPLUS, turn(Role.QUESTIONER), ParsedQuestion("q", "g"), answers_G=answers_G)
    return assign_rewards(played, settings)


@pytest.mark.parametrize(
    ("rule", "given", "majority", "reward"),
    [
        (0.0, (), None, 0.0),
        (1.0, (), None, 1.0),
        (0.0, (True, True, False), 1.0, 1.0),
        (0.0, (True, False), 0.0, 0.0),
        (1.0, (False, False), 0.0, 1.0),
        (1.0, (True,), 1.0, 1.0),
        (0.0, (None, None), None, 0.0),
        (1.0, (None,), None, 1.0),
    ],
)
def test_an_answer_earns_the_larger_of_rule_and_majority(rule, given, majority, reward):
    (scored,) = assigned(answer(rule, judgments_V=votes(*given))).answers_G
    assert (scored.majority, scored.reward) == (majority, reward)


def test_judgments_are_rewarded_for_agreeing():
    (scored,) = assigned(answer(0.0, judgments_V=votes(True, False, True, None))).answers_G
    assert [j.reward for j in scored.judgments_V] == [1.0, 0.0, 1.0, 0.0]
    assert [j.vote for j in scored.judgments_V] == [True, False, True, None]


def test_answers_that_parsed_alike_share_one_tuple_of_judgments():
    given = votes(True, True, False)
    first, second, other, silent = assigned(
        answer(0.0, "x"), answer(0.0, "x", given), answer(0.0, "y"), answer(0.0, None)
    ).answers_G
    assert first.judgments_V is second.judgments_V
    assert (first.reward, second.reward, other.reward, silent.reward) == (1.0, 1.0, 0.0, 0.0)
    assert other.judgments_V == silent.judgments_V == ()


def test_of_several_votings_on_one_answer_the_first_counts_for_all():
    first, second = assigned(answer(0.0, "x", votes(True)), answer(0.0, "x", votes(False))).answers_G
    assert first.judgments_V is second.judgments_V
    assert (first.reward, second.reward) == (1.0, 1.0)


def test_an_answer_that_was_not_parsed_has_no_votes():
    (scored,) = assigned(answer(0.0, None, votes(True))).answers_G
    assert (scored.judgments_V, scored.majority, scored.reward) == ((), None, 0.0)


@pytest.mark.parametrize(
    ("num_right", "outcome", "reward"),
    [
        (0, Outcome.UNSOLVED, 0.0),
        (1, Outcome.USABLE, 0.0796),
        (4, Outcome.USABLE, 1.0),
        (6, Outcome.USABLE, 0.3247),
        (8, Outcome.TRIVIAL, 0.0),
    ],
)
def test_the_solve_rate_decides_outcome_and_question_reward(num_right, outcome, reward):
    scored = assigned(*[answer(float(i < num_right), str(i)) for i in range(8)])
    assert scored.outcome == outcome
    assert scored.question_reward == pytest.approx(reward, abs=5e-5)
    assert scored.solve_rate == num_right / 8


def test_votes_make_a_question_that_the_rule_finds_unsolved_usable():
    scored = assigned(answer(0.0, "x", votes(True)), answer(0.0, "y", votes(False)))
    assert (scored.outcome, scored.question_reward) == (Outcome.USABLE, 1.0)


def test_the_width_of_the_frontier_is_the_one_set():
    answers = [answer(float(i < 1), str(i)) for i in range(4)]
    assert assigned(*answers, settings=RewardSection(frontier_sigma=10.0)).question_reward > 0.99
    assert assigned(*answers).question_reward < 0.5


def test_the_given_round_stays_as_it_was_and_keeps_everything_else():
    given = answer(1.0, judgments_V=votes(True))
    draw = Draw(3, "s", TaskName.GENERAL_QA, (0,), (0,))
    played = Round(draw, Outcome.UNSOLVED, blind_solve_rate=0.25, answers_G=(given,))
    scored = assign_rewards(played, SETTINGS)
    assert (played.outcome, given.reward, given.judgments_V[0].reward) == (Outcome.UNSOLVED, 0.0, 0.0)
    assert (scored.draw, scored.blind_solve_rate, scored.answers_G[0].turn) == (draw, 0.25, given.turn)


def test_a_round_without_answers_is_refused():
    with pytest.raises(ValueError, match="round 3: has no answers"):
        assigned()
