import asyncio
from dataclasses import replace

import numpy as np
import pytest

from megatron_spell.config.schema import AlgoSection
from megatron_spell.selfplay.assemble import assemble
from megatron_spell.selfplay.round import play_round
from megatron_spell.types.play import Draw, ExpertChoices, Outcome, Role, Round, TaskName
from tests.unit.selfplay.playing import Script, make_config, make_table


def play(folder, script: Script, index: int, task: TaskName = TaskName.GENERAL_QA) -> Round:
    table = make_table(folder, script, make_config(folder, play={"judge_right_share": 0.0}))
    played = asyncio.run(play_round(Draw(index, "set-0", TaskName.GENERAL_QA, (0,), (0,)), table))
    return replace(played, draw=replace(played.draw, task=task))


@pytest.fixture(scope="module")
def usable(folder):
    votes = ["[[NO]]"] * 6 + ["[[YES]]"] * 2
    one_in_four = ["The correct answer is red kite", *["The correct answer is blue tit"] * 3]
    return [play(folder, Script(votes=votes), 0), play(folder, Script(answers=one_in_four, votes=votes), 1)]


@pytest.fixture(scope="module")
def failed(folder):
    return [play(folder, Script(questions=["nothing"]), 10 + i) for i in range(6)]


def rows_of(rounds, role: Role, **algo):
    rows = assemble(rounds, AlgoSection(**algo), np.random.default_rng(0))
    return [row for row in rows if row.role == role]


def test_a_usable_question_gives_its_answers_with_advantages_of_its_group(usable):
    rows = rows_of(usable, Role.RESPONDER)
    assert len(rows) == 16
    first = [row for row in rows if row.group == rows[0].group]
    assert sum(row.advantage for row in first) == pytest.approx(0, abs=1e-9)
    assert [row.reward for row in first] == [1.0, 0.0] * 4
    assert first[0].advantage == pytest.approx(0.5 / (np.std([1, 0] * 4, ddof=1) + 1e-6))
    assert all(np.array_equal(row.prompt_ids_T, first[0].prompt_ids_T) for row in first)


def without_output(answer):
    completion = answer.turn.completion
    nothing = replace(completion, token_ids_T=completion.token_ids_T[:0], log_probs_T=completion.log_probs_T[:0])
    return replace(answer, turn=replace(answer.turn, completion=nothing))


def test_an_empty_answer_counts_in_its_groups_baseline_and_brings_no_token(usable):
    answers_G = usable[0].answers_G
    one_empty = replace(usable[0], answers_G=(without_output(answers_G[0]), *answers_G[1:]))
    rows, whole = rows_of([one_empty], Role.RESPONDER), rows_of(usable[:1], Role.RESPONDER)
    assert [row.advantage for row in rows] == [row.advantage for row in whole]
    assert [row.response_ids_A.size > 0 for row in rows] == [False] + [True] * 7


def test_a_group_of_empty_answers_has_no_signal(usable):
    empty = replace(usable[0], answers_G=tuple(map(without_output, usable[0].answers_G)))
    assert rows_of([empty], Role.RESPONDER) == []


def test_the_last_token_of_a_response_is_the_stop_token(usable):
    row = rows_of(usable, Role.RESPONDER)[0]
    assert row.response_ids_A[-1] == 258
    assert row.engine_log_probs_A.shape == row.response_ids_A.shape


def test_a_row_carries_the_expert_choices_of_its_completion(usable):
    choices = ExpertChoices(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
    answers_G = [
        replace(a, turn=replace(a.turn, completion=replace(a.turn.completion, experts=choices)))
        for a in usable[0].answers_G
    ]
    rows = rows_of([replace(usable[0], answers_G=tuple(answers_G))], Role.RESPONDER)
    assert rows and all(row.experts is choices for row in rows)
    assert rows_of(usable, Role.RESPONDER)[0].experts is None


def test_as_many_failed_questions_as_usable_ones_are_trained_on(usable, failed):
    rows = rows_of([*usable, *failed], Role.QUESTIONER)
    assert sorted(row.reward for row in rows)[:2] == [-1.0, -1.0]
    assert len(rows) == 4
    assert len({row.group for row in rows}) == 1
    assert len(rows_of([*usable, *failed], Role.QUESTIONER, failed_question_ratio=0.5)) == 3


def test_failed_questions_are_of_the_tasks_of_the_usable_ones_and_a_shortage_is_carried(usable, failed):
    math = [replace(r, draw=replace(r.draw, task=TaskName.MATH_QA)) for r in failed]
    assert len(rows_of([*usable, *math], Role.QUESTIONER)) >= 2
    rows = assemble([*usable, *math], AlgoSection(), np.random.default_rng(0))
    assert not [row for row in rows if row.task == TaskName.MATH_QA], "failures alone have no variance"


def test_a_lone_question_has_no_advantage_and_no_row(usable):
    assert rows_of(usable[:1], Role.QUESTIONER) == []


def test_a_question_whose_prompt_did_not_fit_is_not_trained_on(usable):
    too_long = [Round(replace(usable[0].draw, index=9), Outcome.PROMPT_TOO_LONG)] * 4
    assert len(rows_of([*usable, *too_long], Role.QUESTIONER)) == 2


def test_vote_groups_that_disagree_and_are_right_are_trained_on_up_to_the_limit(usable):
    rows = rows_of(usable, Role.VERIFIER)
    assert len(rows) == 16
    assert sorted({row.reward for row in rows}) == [0.0, 1.0]
    assert len(rows_of(usable, Role.VERIFIER, verifier_groups_per_step=1)) == 8


@pytest.mark.parametrize("votes", [["[[NO]]"], ["[[YES]]"] * 6 + ["[[NO]]"] * 2, ["[[YES]]", "[[NO]]"], ["what"]])
def test_unanimous_wrong_tied_and_unparsable_vote_groups_are_left_out(folder, votes):
    assert rows_of([play(folder, Script(votes=votes), 0)], Role.VERIFIER) == []


def test_vote_groups_whose_asking_was_to_end_early_are_left_out_also_when_it_did_not(usable):
    stopping = [
        replace(played, answers_G=tuple(replace(a, stop_when_settled=True) for a in played.answers_G))
        for played in usable
    ]
    assert [len(a.judgments_V) for a in stopping[0].answers_G] == [0, 8] * 4
    assert rows_of(stopping, Role.VERIFIER) == [] and rows_of(usable, Role.VERIFIER)
    assert len({row.group for row in rows_of([stopping[0], usable[1]], Role.VERIFIER)}) == 1


def test_roles_that_are_not_trained_have_no_rows(usable, failed):
    rows = assemble([*usable, *failed], AlgoSection(train_roles=(Role.QUESTIONER,)), np.random.default_rng(0))
    assert {row.role for row in rows} == {Role.QUESTIONER}


def test_groups_are_numbered_apart_and_adjacent(usable, failed):
    rows = assemble([*usable, *failed], AlgoSection(), np.random.default_rng(0))
    groups = [row.group for row in rows]
    assert groups == sorted(groups)
    assert len({(row.role, row.group) for row in rows}) == len(set(groups))


def test_the_choice_depends_on_the_seed_only(usable, failed):
    one, same = (assemble([*usable, *failed], AlgoSection(), np.random.default_rng(3)) for _ in range(2))
    assert all(np.array_equal(a.response_ids_A, b.response_ids_A) for a, b in zip(one, same))


def test_rounds_that_grew_stale_are_not_trained_on(usable, failed):
    stale = [replace(r, outcome=Outcome.STALE) for r in [*usable, *failed]]
    assert assemble(stale, AlgoSection(), np.random.default_rng(0)) == []
    with_fresh = assemble([*usable, *stale], AlgoSection(), np.random.default_rng(0))
    alone = assemble(usable, AlgoSection(), np.random.default_rng(0))
    assert [(row.role, row.group, row.reward) for row in with_fresh] == [(r.role, r.group, r.reward) for r in alone]


def test_without_the_rules_say_the_verifier_also_learns_from_votes_against_it(folder):
    against = play(folder, Script(votes=["[[YES]]"] * 6 + ["[[NO]]"] * 2), 0)
    assert rows_of([against], Role.VERIFIER) == []
    assert len(rows_of([against], Role.VERIFIER, verifier_needs_rule=False)) == 8
