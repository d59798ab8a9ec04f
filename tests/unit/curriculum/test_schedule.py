import json

import pytest

from megatron_spell.config.schema import LengthSection
from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.curriculum.schedule import LengthSchedule


def make_schedule(**change) -> LengthSchedule:
    settings = {"start_tokens": 1000, "max_tokens": 5000, "factor": 2.0, "window": 4, "raise_above": 0.6}
    return LengthSchedule(LengthSection(**settings | {"lower_below": 0.2} | change))


def play(schedule: LengthSchedule, *solve_rates: float) -> list[bool]:
    return [schedule.observe(rate) for rate in solve_rates]


def test_rises_only_when_the_window_is_full_and_the_mean_is_above():
    schedule = make_schedule()
    assert play(schedule, 1, 1, 1) == [False] * 3
    assert schedule.budget_tokens == 1000
    assert play(schedule, 1) == [True]
    assert schedule.budget_tokens == 2000


def test_a_mean_at_a_threshold_changes_nothing():
    assert not any(play(make_schedule(raise_above=0.5), *[0.5] * 9))
    raised = make_schedule()
    play(raised, *[1] * 4)
    assert not any(play(raised, *[0.2] * 9))


def test_the_mean_moves_on_over_the_last_rounds():
    schedule = make_schedule()
    assert not any(play(schedule, 0.3, 0.3, 0.3, 0.6, 0.6, 0.6))
    assert schedule.solve_rate == pytest.approx(0.525)
    assert play(schedule, 0.7) == [True]  # 0.6, 0.6, 0.6, 0.7


def test_a_change_starts_the_window_anew():
    schedule = make_schedule()
    play(schedule, *[1] * 4)
    assert schedule.solve_rate is None
    assert play(schedule, 1, 1, 1) == [False] * 3
    assert schedule.budget_tokens == 2000


def test_falls_back_by_the_same_rungs():
    schedule = make_schedule()
    rising, falling = [schedule.budget_tokens], []
    for _ in range(3):
        play(schedule, *[1] * 4)
        rising.append(schedule.budget_tokens)
    for _ in range(3):
        play(schedule, *[0] * 4)
        falling.append(schedule.budget_tokens)
    assert rising == [1000, 2000, 4000, 5000]
    assert falling == [4000, 2000, 1000]


def test_stays_between_start_and_maximum():
    schedule = make_schedule()
    assert not any(play(schedule, *[0] * 9))
    assert (schedule.budget_tokens, schedule.level) == (1000, 0)
    play(schedule, *[1] * 40)
    assert (schedule.budget_tokens, schedule.level) == (5000, 3)
    assert schedule.solve_rate == 1


@pytest.mark.parametrize(
    ("factor", "rungs"),
    [(1.01, [10, 11, 12]), (4.0, [10, 12]), (1.1, [10, 11, 12])],
)
def test_every_rung_is_another_budget(factor, rungs):
    schedule = make_schedule(start_tokens=10, max_tokens=12, factor=factor, window=1)
    reached = [schedule.budget_tokens]
    for _ in range(20):
        if play(schedule, 1) == [True]:
            reached.append(schedule.budget_tokens)
    assert reached == rungs


def test_start_at_the_maximum_never_moves():
    schedule = make_schedule(start_tokens=5000)
    assert not any(play(schedule, *[1] * 9, *[0] * 9))


def test_start_above_the_maximum_is_refused():
    with pytest.raises(CurriculumError, match="start_tokens = 6000 is above"):
        make_schedule(start_tokens=6000)


def test_state_round_trips_through_json():
    schedule, other = make_schedule(), make_schedule()
    play(schedule, 1, 1, 1, 1, 0.1, 0.7)
    other.load_state(json.loads(json.dumps(schedule.state())))
    assert other.state() == schedule.state()
    assert play(other, 0.9, 0.9) == play(schedule, 0.9, 0.9)
    assert other.budget_tokens == schedule.budget_tokens


def test_a_shorter_ladder_keeps_its_top_and_a_shorter_window_its_newest():
    schedule = make_schedule(max_tokens=2000, window=1)
    schedule.load_state({"level": 3, "solve_rates": [0.1, 0.5]})
    assert (schedule.budget_tokens, schedule.solve_rate) == (2000, 0.5)


@pytest.mark.parametrize("bad", [{}, {"level": 1}, {"level": "x", "solve_rates": []}, {"level": 0, "solve_rates": 3}])
def test_a_malformed_state_is_refused(bad):
    with pytest.raises(CurriculumError, match="length schedule is malformed"):
        make_schedule().load_state(bad)
