from dataclasses import replace

import numpy as np
import pytest

from megatron_spell.observe.metrics import packing_metrics, round_metrics, row_metrics, turns_of
from megatron_spell.types.batches import Bin, PackedBatch, TrainRow
from megatron_spell.types.play import Completion, Outcome, Role, TaskName, Turn
from tests.unit.observe.made_rounds import make_answer, make_round, make_turn, make_votes

SHARED = make_votes(True, False, False, None)
USABLE = make_round(
    answers_G=[
        make_answer(1.0, 1.0),
        make_answer(0.0, 0.0, SHARED, majority=0.0, num_tokens=5),
        make_answer(0.0, 0.0, SHARED, majority=0.0),
        make_answer(0.0, 1.0, make_votes(True, True, True), majority=1.0, finish_reason="length", parsed=None),
    ],
    question_reward=0.75,
    blind_solve_rate=0.25,
    blind_turns=(make_turn(Role.RESPONDER, 11),),
)
TRIVIAL = make_round(Outcome.TRIVIAL, [make_answer(1.0, 1.0)], task=TaskName.MATH_QA, blind_solve_rate=0.0)
BAD = make_round(Outcome.BAD_FORMAT, question=None, question_reward=-1.0)
TOO_LONG = make_round(Outcome.PROMPT_TOO_LONG, ask=None, question=None)
SURPLUS = make_round(Outcome.SURPLUS)


def test_every_outcome_has_a_counter():
    metrics = round_metrics([USABLE, TRIVIAL, BAD, BAD])
    counts = {str(outcome): metrics[f"rounds/outcome/{outcome}"] for outcome in Outcome}
    assert {name: count for name, count in counts.items() if count} == {"usable": 1, "trivial": 1, "bad_format": 2}
    assert metrics["rounds/count"] == 4
    assert metrics["rounds/usable_share"] == 0.25


def test_the_means_of_the_responder():
    metrics = round_metrics([USABLE, TRIVIAL, BAD])
    assert metrics["responder/reward/mean"] == pytest.approx(3 / 5)
    assert metrics["responder/rule/mean"] == pytest.approx(2 / 5)
    assert metrics["responder/unparsable/share"] == pytest.approx(1 / 5)
    assert metrics["responder/solve_rate/mean"] == pytest.approx((0.5 + 1) / 2)
    assert metrics["responder/solve_rate/general_qa"] == 0.5
    assert metrics["responder/solve_rate/math_qa"] == 1
    assert "responder/solve_rate/multiple_choice" not in metrics


def test_the_means_of_the_questioner_are_over_rounds_that_were_rewarded():
    metrics = round_metrics([USABLE, TRIVIAL, BAD, TOO_LONG, SURPLUS])
    assert metrics["questioner/reward/mean"] == pytest.approx((0.75 + 0 - 1) / 3)
    assert metrics["questioner/blind_solve_rate/mean"] == pytest.approx(0.125)
    assert metrics["questioner/usable_share/general_qa"] == pytest.approx(1 / 4)
    assert metrics["questioner/outputs"] == 4


def test_shared_votes_count_once():
    metrics = round_metrics([USABLE])
    assert metrics["verifier/votes"] == 7
    assert metrics["verifier/unparsable/share"] == pytest.approx(1 / 7)
    assert metrics["verifier/yes/share"] == pytest.approx(4 / 6)
    assert metrics["verifier/reward/mean"] == pytest.approx(4 / 7)
    assert metrics["verifier/agreement/mean"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["verifier/rule_agreement/mean"] == 0.5
    assert metrics["verifier/outputs"] == 7


def test_votes_by_the_rules_verdict_on_what_they_are_cast_on():
    right = make_answer(1.0, 1.0, make_votes(True, True, False, None), parsed="5")
    metrics = round_metrics([USABLE, make_round(answers_G=[right])])
    assert metrics["verifier/yes_on_refused/share"] == pytest.approx(4 / 6)
    assert metrics["verifier/yes_on_accepted/share"] == pytest.approx(2 / 3)
    assert "verifier/yes_on_accepted/share" not in round_metrics([USABLE])


def test_reward_that_only_votes_give():
    metrics = round_metrics([USABLE, BAD])
    assert metrics["responder/reward_against_rule/share"] == pytest.approx(1 / 2)
    assert "responder/reward_against_rule/share" not in round_metrics([make_round(answers_G=[make_answer(0.0, 0.0)])])


def test_surprisal_is_a_mean_over_tokens():
    loud, quiet = make_turn(Role.QUESTIONER, 1), make_turn(Role.QUESTIONER, 3)
    loud.completion.log_probs_T[:] = -4.0
    metrics = round_metrics(
        [make_round(ask=loud), make_round(ask=quiet), make_round(ask=make_turn(Role.QUESTIONER, 0))]
    )
    assert metrics["questioner/surprisal/mean"] == pytest.approx((4 + 3 * 0.5) / 4)
    assert "responder/surprisal/mean" not in metrics


def test_surprisal_of_samples_at_temperature_one_estimates_the_entropy():
    rng = np.random.default_rng(0)
    probs = np.array([0.5, 0.25, 0.15, 0.1])
    ids = rng.choice(4, size=20_000, p=probs).astype(np.int32)
    completion = Completion(ids, np.log(probs)[ids].astype(np.float32), "stop", 0)
    metrics = round_metrics([make_round(ask=Turn(Role.QUESTIONER, ids[:2], completion, ""))])
    assert metrics["questioner/surprisal/mean"] == pytest.approx(-(probs * np.log(probs)).sum(), abs=0.01)


def test_votes_that_cannot_be_read_have_no_agreement():
    played = make_round(answers_G=[make_answer(0.0, 0.0, make_votes(None, None))])
    metrics = round_metrics([played])
    assert metrics["verifier/unparsable/share"] == 1
    assert not {"verifier/agreement/mean", "verifier/yes/share", "verifier/rule_agreement/mean"} & set(metrics)


def test_outputs_by_role():
    metrics = round_metrics([USABLE])
    assert metrics["responder/output_tokens/mean"] == pytest.approx((11 + 3 + 5 + 3 + 3) / 5)
    assert metrics["responder/output_tokens/max"] == 11
    assert metrics["responder/unfinished/share"] == pytest.approx(1 / 5)
    assert metrics["questioner/output_tokens/mean"] == 9
    assert metrics["questioner/prompt_tokens/mean"] == 2
    assert len(turns_of(USABLE, Role.VERIFIER)) == 7


@pytest.mark.parametrize("rounds", [[], [TOO_LONG], [USABLE, SURPLUS, BAD]])
def test_nothing_is_ever_nan(rounds):
    metrics = round_metrics(rounds)
    assert all(isinstance(value, float) and np.isfinite(value) for value in metrics.values())


def make_row(role, group, num_tokens, advantage) -> TrainRow:
    ids = np.arange(num_tokens)
    return TrainRow(role, TaskName.MATH_QA, group, np.arange(10), ids, ids * 0.0, 0.0, advantage, 0)


def test_rows_by_role():
    rows = [
        make_row(Role.RESPONDER, 0, 3, 1.0),
        make_row(Role.RESPONDER, 0, 5, -0.5),
        make_row(Role.VERIFIER, 1, 2, 2.0),
    ]
    metrics = row_metrics(rows, version=3)
    assert [metrics[f"{role}/rows"] for role in Role] == [0, 2, 1]
    assert [metrics[f"{role}/groups"] for role in Role] == [0, 1, 1]
    assert metrics["responder/advantage/abs_mean"] == 0.75
    assert "questioner/advantage/abs_mean" not in metrics
    assert (metrics["tokens/prompt"], metrics["tokens/trained"]) == (30, 10)
    assert metrics["tokens/trained/responder"] == 8


def test_what_sharing_prompts_saved():
    none = np.zeros(0)
    packed = Bin(np.zeros(40), np.zeros(40), none, none, none, none, none, none, none, none, 36)
    metrics = packing_metrics(PackedBatch(((packed,), (packed,)), num_rows=4, num_row_tokens=320))
    assert metrics == {
        "packing/bins": 2,
        "packing/bin_tokens": 80,
        "packing/tokens_per_bin": 40,
        "packing/useful_share": 0.9,
        "packing/shared_share": 0.75,
    }


def test_votes_that_were_cut_when_settled_do_not_tell_how_far_a_verifier_agrees():
    whole = make_answer(0.0, 0.0, make_votes(False, False, True))
    cut = replace(make_answer(0.0, 0.0, make_votes(False, False)), stop_when_settled=True)
    both = round_metrics([make_round(answers_G=[whole, cut])])
    assert both["verifier/votes"] == 5
    assert both["verifier/agreement/mean"] == pytest.approx(2 / 3)
    assert both["verifier/yes/share"] == pytest.approx(1 / 3)
    alone = round_metrics([make_round(answers_G=[cut])])
    assert alone["verifier/agreement/mean"] == 1
