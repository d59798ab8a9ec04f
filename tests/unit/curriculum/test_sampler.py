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
        tasks = Counter(sampler.task_and_set(block * BLOCK + place)[0] for place in range(BLOCK))
        assert tasks == dict.fromkeys(TaskName, BLOCK // 3)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 100), min_size=3, max_size=3).filter(lambda weights: max(weights) > 1), st.integers(0, 9))
def test_every_block_keeps_to_the_weights_within_one_draw(weights, seed):
    sampler = Sampler(seed, dict(zip(TaskName, weights)), SETS)
    for block in range(3):
        tasks = Counter(sampler.task_and_set(block * BLOCK + place)[0] for place in range(BLOCK))
        for task, weight in zip(TaskName, weights):
            assert abs(tasks[task] - BLOCK * weight / sum(weights)) < 1 + 1e-9
            assert weight > 0 or tasks[task] == 0


def test_the_tasks_of_a_block_come_in_no_fixed_order():
    sampler = Sampler(3, EVEN, SETS)
    orders = {tuple(sampler.task_and_set(block * BLOCK + place)[0] for place in range(BLOCK)) for block in range(9)}
    assert len(orders) == 9


def test_a_small_weight_is_dealt_its_share_in_the_long_run():
    sampler = Sampler(0, {TaskName.MATH_QA: 0.01, TaskName.GENERAL_QA: 0.99}, SETS)
    tasks = Counter(sampler.task_and_set(index)[0] for index in range(6000))
    assert 30 <= tasks[TaskName.MATH_QA] <= 90


def test_a_task_visits_every_set_once_in_every_epoch():
    sampler = Sampler(5, EVEN, SETS)
    visits = {task: [] for task in TaskName}
    for index in range(3 * 7 * BLOCK):
        task, set_id = sampler.task_and_set(index)
        visits[task].append(set_id)
    for sets in visits.values():
        epochs = [tuple(sets[start : start + 7]) for start in range(0, 21, 7)]
        assert all(sorted(epoch) == sorted(SETS) for epoch in epochs)
        assert len(set(epochs)) == 3
    assert len({tuple(sets[:7]) for sets in visits.values()}) == 3


def test_the_seed_alone_decides_in_whatever_order_one_asks():
    forwards, backwards = Sampler(5, EVEN, SETS), Sampler(5, EVEN, SETS)
    dealt = [forwards.task_and_set(index) for index in range(100)]
    assert [backwards.task_and_set(index) for index in reversed(range(100))] == dealt[::-1]
    assert [Sampler(6, EVEN, SETS).task_and_set(index) for index in range(100)] != dealt


def test_what_cannot_be_dealt_is_refused():
    with pytest.raises(CurriculumError, match="no set to train on"):
        Sampler(0, EVEN, ())
    with pytest.raises(CurriculumError, match="every task has weight 0"):
        Sampler(0, {TaskName.MATH_QA: 0.0}, SETS)
    with pytest.raises(CurriculumError, match="draw -1"):
        Sampler(0, EVEN, SETS).task_and_set(-1)
