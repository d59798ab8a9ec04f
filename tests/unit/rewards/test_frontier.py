import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.rewards.frontier import question_reward

SIGMA = 0.5 / 3


def test_the_papers_table_for_k_of_eight():
    expected = [0.0, 0.0796, 0.3247, 0.7548, 1.0, 0.7548, 0.3247, 0.0796, 0.0]
    assert [round(question_reward(k / 8, SIGMA), 4) for k in range(9)] == expected


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0.01, 10))
def test_the_reward_lies_in_the_unit_interval_and_is_largest_at_one_half(solve_rate, sigma):
    reward = question_reward(solve_rate, sigma)
    assert 0.0 <= reward <= 1.0 == question_reward(0.5, sigma)
    assert reward == pytest.approx(question_reward(1 - solve_rate, sigma), abs=1e-9) or solve_rate < 1e-15


@pytest.mark.parametrize("solve_rate", [-0.1, 1.1, math.nan, math.inf])
def test_a_rate_that_is_no_share_is_refused(solve_rate):
    with pytest.raises(ValueError, match="solve_rate"):
        question_reward(solve_rate, SIGMA)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_a_sigma_that_is_not_positive_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        question_reward(0.5, sigma)
