"""Task weights that follow the usable questions, with simulated rates."""

import json
from collections import Counter

import numpy as np
import pytest

from megatron_spell.config.schema import TaskBalanceSection
from megatron_spell.curriculum.balance import TaskBalance
from megatron_spell.curriculum.curriculum import Catalog, Curriculum, SetEntry
from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.types.play import Outcome, TaskName
from tests.unit.curriculum.playing import make_curriculum, played

GENERAL, MATH, CHOICE = TaskName.GENERAL_QA, TaskName.MATH_QA, TaskName.MULTIPLE_CHOICE
EVEN = dict.fromkeys(TaskName, 1.0)
CATALOG = Catalog(tuple(SetEntry(f"set-{n}", (100,) * 20) for n in range(10)))
ON = {"enabled": True, "window": 80}
STEP = 60  # rounds observed at once


def balanced(rates: dict, given=EVEN, rounds: int = 1000, **settings) -> TaskBalance:
    balance = TaskBalance(TaskBalanceSection(**ON | settings), given)
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for task, rate in rates.items():
            balance.observe(task, bool(rng.random() < rate))
    return balance


def simulate(curriculum: Curriculum, rates, steps: int, first: int = 0) -> list[Counter]:
    """The usable questions of each step by task; a round of a task is usable with its rate."""
    rng = np.random.default_rng(1)
    mixes = []
    for index in range(first * STEP, (first + steps) * STEP, STEP):
        draws = [curriculum.draw(i) for i in range(index, index + STEP)]
        ends = [Outcome.USABLE if rng.random() < rates[draw.task] else Outcome.BAD_FORMAT for draw in draws]
        curriculum.observe([played(draw, outcome=end) for draw, end in zip(draws, ends)])
        mixes.append(Counter(draw.task for draw, end in zip(draws, ends) if end is Outcome.USABLE))
    return mixes


def shares(mixes) -> dict[TaskName, float]:
    total = sum(mixes, Counter())
    return {task: total[task] / total.total() for task in TaskName}


# ---- weights from rates ----


def test_weights_are_inverse_to_the_rates():
    weights = balanced({GENERAL: 0.8, MATH: 0.2, CHOICE: 0.4}).weights()
    usable = [weights[task] * rate for task, rate in ((GENERAL, 0.8), (MATH, 0.2), (CHOICE, 0.4))]
    assert max(usable) / min(usable) < 1.5
    assert weights[MATH] > weights[CHOICE] > weights[GENERAL]


def test_given_weights_are_what_the_usable_mix_keeps_to():
    weights = balanced({GENERAL: 0.5, MATH: 0.5, CHOICE: 0.5}, {GENERAL: 1.0, MATH: 4.0, CHOICE: 2.0}).weights()
    assert weights[MATH] / weights[GENERAL] == pytest.approx(4, rel=0.4)


def test_factors_are_bounded():
    weights = balanced({GENERAL: 1.0, MATH: 0.0, CHOICE: 1.0}, min_factor=0.5, max_factor=3.0).weights()
    assert weights == {GENERAL: 0.5, MATH: 3.0, CHOICE: 0.5}


def test_nothing_observed_or_nothing_usable_leaves_the_given_weights():
    assert balanced({}).weights() == EVEN
    assert balanced(dict.fromkeys(TaskName, 0.0)).weights() == EVEN


def test_a_few_rounds_move_little():
    balance = TaskBalance(TaskBalanceSection(**ON), EVEN)
    for task in TaskName:
        balance.observe(task, task is GENERAL)
    weights = balance.weights()
    assert all(0.7 < weight < 1.4 for weight in weights.values())


def test_old_rounds_are_forgotten():
    balance = balanced({GENERAL: 0.9, MATH: 0.1, CHOICE: 0.5})
    for _ in range(500):
        for task in TaskName:
            balance.observe(task, True)
    assert all(rate > 0.98 for rate in balance.usable_rates().values())
    assert balance.weights() == pytest.approx(EVEN, abs=0.02)


def test_a_task_without_weight_is_left_alone():
    balance = TaskBalance(TaskBalanceSection(**ON), {GENERAL: 1.0, MATH: 1.0})
    balance.observe(CHOICE, True)
    assert balance.weights() == {GENERAL: 1.0, MATH: 1.0}


def test_state_round_trips_and_malformed_ones_are_refused():
    balance, other = balanced({GENERAL: 0.9, MATH: 0.1}), TaskBalance(TaskBalanceSection(**ON), EVEN)
    other.load_state(json.loads(json.dumps(balance.state())))
    assert other.weights() == balance.weights() and other.state() == balance.state()
    for bad in ([], {"general_qa": 3}, {"nonsense": [1, 0]}, {"math_qa": [1.0, 2.0]}, {"math_qa": ["x", 0]}):
        with pytest.raises(CurriculumError, match="usable rates are malformed"):
            other.load_state(bad)


# ---- the loop: draws, rounds, weights, draws ----

UNEVEN = {GENERAL: 0.6, MATH: 0.15, CHOICE: 0.3}


def test_the_usable_mix_evens_out():
    off = shares(simulate(make_curriculum(CATALOG, memory_size=0), UNEVEN, 24)[8:])
    on = shares(simulate(make_curriculum(CATALOG, memory_size=0, task_balance=ON), UNEVEN, 24)[8:])
    assert off[GENERAL] > 0.5 and off[MATH] < 0.2
    assert all(share == pytest.approx(1 / 3, abs=0.07) for share in on.values())


def test_the_shares_settle_and_do_not_swing():
    curriculum, drawn = make_curriculum(CATALOG, memory_size=0, task_balance=ON), []
    for first in (0, 10, 20):
        simulate(curriculum, UNEVEN, 10, first)
        drawn.append(curriculum.metrics()["curriculum/task_share/math_qa"])
    wanted = (1 / 0.15) / sum(1 / rate for rate in UNEVEN.values())
    assert all(share == pytest.approx(wanted, abs=0.08) for share in drawn)


def test_a_task_that_is_hardly_ever_usable_does_not_take_over():
    curriculum = make_curriculum(CATALOG, memory_size=0, task_balance=ON | {"max_factor": 2.0, "min_factor": 0.5})
    simulate(curriculum, {GENERAL: 0.6, MATH: 0.0, CHOICE: 0.6}, 15)
    metrics = curriculum.metrics()
    assert metrics["curriculum/task_share/math_qa"] == pytest.approx(2 / 3, abs=0.01)
    assert metrics["curriculum/usable_rate/math_qa"] < 0.1 < metrics["curriculum/usable_rate/general_qa"]


def test_every_task_still_visits_every_set_in_every_epoch():
    curriculum, visited = make_curriculum(CATALOG, memory_size=0, task_balance=ON), {task: [] for task in TaskName}
    for step in range(15):
        draws = [curriculum.draw(index) for index in range(step * STEP, (step + 1) * STEP)]
        for draw in draws:
            visited[draw.task].append(draw.set_id)
        curriculum.observe([played(draw, outcome=end_of(draw.index, UNEVEN[draw.task])) for draw in draws])
    for sets in visited.values():
        assert all(len(set(sets[start : start + 10])) == 10 for start in range(0, len(sets) - 9, 10))


def end_of(index: int, rate: float) -> Outcome:
    return Outcome.USABLE if np.random.default_rng(index).random() < rate else Outcome.BAD_FORMAT


def test_off_draws_the_same_whatever_was_usable():
    curriculum = make_curriculum(CATALOG, memory_size=0, length={"enabled": False})
    untouched = [curriculum.draw(index) for index in range(600)]
    simulate(curriculum, UNEVEN, 5)
    assert [curriculum.draw(index) for index in range(600)] == untouched
    assert not any(name.startswith("curriculum/task_share") for name in curriculum.metrics())


def test_a_resumed_run_has_the_same_draws_and_weights():
    curriculum, resumed = (make_curriculum(CATALOG, memory_size=0, task_balance=ON) for _ in range(2))
    simulate(curriculum, UNEVEN, 10)
    resumed.load_state(json.loads(json.dumps(curriculum.state())))
    later = range(10 * STEP, 20 * STEP)
    draws = [curriculum.draw(index) for index in later]
    assert [resumed.draw(index) for index in later] == draws
    for one in (curriculum, resumed):
        one.observe([played(draw, outcome=end_of(draw.index, UNEVEN[draw.task])) for draw in draws])
    assert resumed.state() == curriculum.state()
    assert resumed.draw(20 * STEP + 99) == curriculum.draw(20 * STEP + 99)


def test_rounds_under_way_keep_their_task_and_set():
    """Begun two steps ahead, as with a staleness of two: what is observed meanwhile must not deal them anew."""
    play = {"questions_per_step": 15, "min_questions": 1, "max_draws_per_step": STEP}
    curriculum = make_curriculum(CATALOG, memory_size=0, task_balance=ON, play=play, algo={"max_staleness": 2})
    for step in range(10):
        under_way = range((step + 1) * STEP, (step + 3) * STEP)
        before = [curriculum.draw(index) for index in under_way]
        draws = [curriculum.draw(index) for index in range(step * STEP, (step + 1) * STEP)]
        curriculum.observe([played(draw, outcome=end_of(draw.index, UNEVEN[draw.task])) for draw in draws])
        after = [curriculum.draw(index) for index in under_way]
        assert [(d.task, d.set_id) for d in after] == [(d.task, d.set_id) for d in before]
    assert curriculum.metrics()["curriculum/task_share/math_qa"] > 0.45
    assert len(curriculum.state()["tasks"]) <= 5  # what is long past is dropped


def test_turned_off_at_a_resume_the_given_weights_come_back():
    curriculum, resumed = make_curriculum(CATALOG, memory_size=0, task_balance=ON), make_curriculum(CATALOG)
    simulate(curriculum, UNEVEN, 10)
    resumed.load_state(curriculum.state())
    resumed.observe([played(resumed.draw(10 * STEP))])
    tasks = Counter(resumed.draw(index).task for index in range(11 * STEP, 12 * STEP))
    assert tasks == dict.fromkeys(TaskName, STEP // 3)
