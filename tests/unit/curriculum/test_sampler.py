import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.curriculum.sampler import BLOCK, Sampler
from megatron_spell.types.play import TaskName

EVEN = dict.fromkeys(TaskName, 1.0)
SETS = tuple(f"set-{n}" for n in range(7))


def test_even_weights_come_out_exactly_in_every_block():
    sampler = Sampler(3, EVEN, SETS)
    for block in range(20):
        tasks = Counter(sampler.visit(block * BLOCK + place).task for place in range(BLOCK))
        assert tasks == dict.fromkeys(TaskName, BLOCK // 3)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 100), min_size=3, max_size=3).filter(lambda weights: max(weights) > 1), st.integers(0, 9))
def test_every_block_keeps_to_the_weights_within_one_draw(weights, seed):
    sampler = Sampler(seed, dict(zip(TaskName, weights)), SETS)
    for block in range(3):
        tasks = Counter(sampler.visit(block * BLOCK + place).task for place in range(BLOCK))
        for task, weight in zip(TaskName, weights):
            assert abs(tasks[task] - BLOCK * weight / sum(weights)) < 1 + 1e-9
            assert weight > 0 or tasks[task] == 0


def test_the_tasks_of_a_block_come_in_no_fixed_order():
    sampler = Sampler(3, EVEN, SETS)
    orders = {tuple(sampler.visit(block * BLOCK + place).task for place in range(BLOCK)) for block in range(9)}
    assert len(orders) == 9


def test_a_small_weight_is_dealt_its_share_in_the_long_run():
    sampler = Sampler(0, {TaskName.MATH_QA: 0.01, TaskName.GENERAL_QA: 0.99}, SETS)
    tasks = Counter(sampler.visit(index).task for index in range(6000))
    assert 30 <= tasks[TaskName.MATH_QA] <= 90


def test_a_task_visits_every_set_once_in_every_epoch():
    sampler = Sampler(5, EVEN, SETS)
    visits = {task: [] for task in TaskName}
    for index in range(3 * 7 * BLOCK):
        task, set_id, _ = sampler.visit(index)
        visits[task].append(set_id)
    for sets in visits.values():
        epochs = [tuple(sets[start : start + 7]) for start in range(0, 21, 7)]
        assert all(sorted(epoch) == sorted(SETS) for epoch in epochs)
        assert len(set(epochs)) == 3
    assert len({tuple(sets[:7]) for sets in visits.values()}) == 3


def test_the_seed_alone_decides_in_whatever_order_one_asks():
    forwards, backwards = Sampler(5, EVEN, SETS), Sampler(5, EVEN, SETS)
    dealt = [forwards.visit(index) for index in range(100)]
    assert [backwards.visit(index) for index in reversed(range(100))] == dealt[::-1]
    assert [Sampler(6, EVEN, SETS).visit(index) for index in range(100)] != dealt


def test_draws_are_those_of_earlier_versions():
    weights = {TaskName.GENERAL_QA: 1.0, TaskName.MATH_QA: 2.0, TaskName.MULTIPLE_CHOICE: 0.5}
    sampler = Sampler(3, weights, SETS)
    assert [(visit.task.value, visit.set_id) for visit in map(sampler.visit, (0, 1, 11, 12, 25, 77, 240, 999))] == [
        ("multiple_choice", "set-3"),
        ("math_qa", "set-2"),
        ("general_qa", "set-3"),
        ("general_qa", "set-2"),
        ("general_qa", "set-1"),
        ("math_qa", "set-5"),
        ("math_qa", "set-4"),
        ("general_qa", "set-0"),
    ]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 60), st.lists(st.floats(0.1, 10), min_size=3, max_size=3)), max_size=3))
def test_new_weights_change_no_earlier_draw_and_skip_no_set(changes):
    sampler, steady = Sampler(5, EVEN, SETS), 0
    for more, weights in changes:
        before = [sampler.visit(index) for index in range(steady + more)]
        sampler.reweigh(steady + more, dict(zip(TaskName, weights)))
        steady += more
        assert [sampler.visit(index) for index in range(steady)] == before
    visits = [sampler.visit(index) for index in range(steady + 100)]
    for task in TaskName:
        sets = [visit.set_id for visit in visits if visit.task is task]
        assert [visit.epoch for visit in visits if visit.task is task] == [n // 7 for n in range(len(sets))]
        assert all(len(set(sets[start : start + 7])) == 7 for start in range(0, len(sets) - 6, 7))


def test_new_weights_hold_from_the_next_block():
    sampler = Sampler(5, EVEN, SETS)
    sampler.reweigh(30, {TaskName.GENERAL_QA: 4.0, TaskName.MATH_QA: 1.0, TaskName.MULTIPLE_CHOICE: 1.0})
    dealt = [Counter(sampler.visit(block * BLOCK + place).task for place in range(BLOCK)) for block in range(5)]
    assert [tasks[TaskName.GENERAL_QA] for tasks in dealt] == [4, 4, 4, 8, 8]
    assert sampler.shares[TaskName.GENERAL_QA] == pytest.approx(4 / 6)


def reweighed() -> Sampler:
    sampler = Sampler(5, EVEN, SETS)
    for index, weight in ((40, 2.0), (90, 5.0), (200, 1.5)):
        sampler.reweigh(index, EVEN | {TaskName.MATH_QA: weight})
    return sampler


def test_state_holds_what_was_dealt():
    sampler, other = reweighed(), Sampler(5, EVEN, SETS)
    other.load_state(json.loads(json.dumps(sampler.state())))
    assert [other.visit(index) for index in range(250)] == [sampler.visit(index) for index in range(250)]
    sampler.forget_before(100)
    assert len(sampler.state()) < len(other.state())
    other.load_state(json.loads(json.dumps(sampler.state())))
    assert [other.visit(index) for index in range(100, 250)] == [reweighed().visit(index) for index in range(100, 250)]
    with pytest.raises(CurriculumError, match="draws before 96 are not known any more"):
        other.visit(95)


def test_a_task_that_comes_later_begins_at_its_first_set():
    two = {TaskName.GENERAL_QA: 1.0, TaskName.MATH_QA: 1.0}
    before, after = Sampler(5, two, SETS), Sampler(5, EVEN, SETS)
    before.reweigh(24, {TaskName.GENERAL_QA: 1.0, TaskName.MATH_QA: 3.0})
    after.load_state(before.state())
    visits = [after.visit(index) for index in range(24, 48)]
    assert [visit.epoch for visit in visits if visit.task is TaskName.MULTIPLE_CHOICE] == [0] * 7 + [1]
    first = next(visit for visit in visits if visit.task is TaskName.GENERAL_QA)
    assert first.epoch == 12 // 7


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [{}],
        [{"first_block": -1, "shares": {}, "dealt_before": {}}],
        [{"first_block": 0, "shares": {"general_qa": -1.0}, "dealt_before": {}}],
        [{"first_block": 0, "shares": {}, "dealt_before": {"general_qa": -1}}],
        [{"first_block": 4, "shares": {}, "dealt_before": {}}, {"first_block": 4, "shares": {}, "dealt_before": {}}],
        [{"first_block": 0, "shares": 3, "dealt_before": {}}],
    ],
)
def test_a_malformed_state_is_refused(bad):
    with pytest.raises(CurriculumError, match="tasks dealt are malformed"):
        Sampler(5, EVEN, SETS).load_state(bad)


def test_what_cannot_be_dealt_is_refused():
    with pytest.raises(CurriculumError, match="no set to train on"):
        Sampler(0, EVEN, ())
    with pytest.raises(CurriculumError, match="every task has weight 0"):
        Sampler(0, {TaskName.MATH_QA: 0.0}, SETS)
    with pytest.raises(CurriculumError, match="draw -1"):
        Sampler(0, EVEN, SETS).visit(-1)
