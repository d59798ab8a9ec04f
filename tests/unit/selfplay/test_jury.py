"""Which rounds get all votes, and in which of them a right answer is judged."""

import asyncio
from dataclasses import replace

import pytest

from megatron_spell.selfplay.jury import full_votes_share
from megatron_spell.selfplay.round import play_round
from megatron_spell.types.play import Draw, TaskName
from tests.unit.selfplay.pacing import paced
from tests.unit.selfplay.playing import Script, make_config, make_table

DRAW = Draw(index=5, set_id="set-1", task=TaskName.GENERAL_QA, shown=(1, 3), answer_from=(0, 1, 3))


@pytest.mark.parametrize(
    ("play", "algo", "share"),
    [
        ({"questions_per_step": 128}, {}, 0.5),
        ({"questions_per_step": 128}, {"verifier_groups_per_step": 8}, 0.25),
        ({"questions_per_step": 24}, {}, 1.0),
        ({"questions_per_step": 128, "full_votes_share": 0.9}, {}, 0.9),
        ({"full_votes_share": 0.9}, {"train_roles": ["responder"]}, 0.0),
    ],
)
def test_the_share_of_rounds_with_all_votes_follows_what_the_step_trains_on(folder, play, algo, share):
    assert full_votes_share(make_config(folder, play=play, algo=algo)) == share


def play_many(folder, num_draws: int, **play):
    """Of each draw, the number of votes on the wrong and on the right answer, and whether the votes stop early."""
    table = make_table(folder, Script(), make_config(folder, play={"ground_samples": 0, **play}))
    counts = []

    async def rounds():
        for index in range(num_draws):
            played = await play_round(replace(DRAW, index=index), table)
            right, wrong = played.answers_G[:2]
            counts.append((len(wrong.judgments_V), len(right.judgments_V), wrong.stop_when_settled))

    asyncio.run(rounds())
    return counts


def test_right_answers_are_judged_only_in_rounds_with_all_votes(folder):
    counts = play_many(folder, 100, full_votes_share=0.4, judge_right_share=0.5)
    assert {count[0] for count in counts} == {4, 8}
    assert {count[1:] for count in counts if count[0] == 4} == {(0, True)}
    assert {count[1:] for count in counts if count[0] == 8} == {(0, False), (8, False)}
    num_full = sum(count[0] == 8 for count in counts)
    num_right = sum(count[1] == 8 for count in counts)
    assert 25 <= num_full <= 55  # 40 +- 3 standard deviations of 4.9
    assert abs(num_right - num_full / 2) <= 3 * (num_full / 4) ** 0.5
    assert play_many(folder, 100, full_votes_share=0.4, judge_right_share=0.5) == counts


@pytest.mark.parametrize(
    ("answers", "num_asked"),
    [
        (["The correct answer is red kite"], 1),  # the one that is right, for the verifier
        (["I do not know"], 0),
        (["The correct answer is blue tit"], 1),
    ],
)
def test_nothing_is_asked_where_a_vote_changes_nothing(folder, answers, num_asked):
    for share, expected in ((1.0, num_asked), (1e-9, int("blue" in answers[0]))):
        config = make_config(folder, play={"full_votes_share": share, "judge_right_share": 1.0})
        table = make_table(folder, Script(answers=answers), config)
        engine = paced(table)
        asyncio.run(play_round(DRAW, table))
        assert len(engine.votes) == expected
