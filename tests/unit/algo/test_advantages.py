import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_spell.algo.advantages import normalise
from megatron_spell.algo.errors import AlgoError

rewards_in_range = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=20)


def test_uses_the_sample_deviation():
    np.testing.assert_allclose(normalise(np.array([1.0, 0.0]), 0.0), [2**-0.5, -(2**-0.5)])


def test_epsilon_is_added_to_the_deviation():
    np.testing.assert_allclose(normalise(np.array([1.0, 0.0]), 1.0), 0.5 / (2**-0.5 + 1.0) * np.array([1, -1]))


@pytest.mark.parametrize("rewards", [[], [0.7], [1.0, 1.0, 1.0], [0.1] * 3, [-0.5, -0.5]])
def test_without_a_baseline_there_is_no_advantage(rewards):
    advantages = normalise(np.array(rewards), 0.0)
    np.testing.assert_array_equal(advantages, np.zeros(len(rewards)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_refused(bad):
    with pytest.raises(AlgoError, match="not all finite"):
        normalise(np.array([0.0, bad]), 1e-6)


@given(rewards_in_range)
def test_advantages_add_up_to_nothing_and_keep_the_order(rewards):
    advantages = normalise(np.array(rewards), 1e-6)
    assert np.isfinite(advantages).all()
    assert abs(advantages.sum()) < 1e-6
    order = np.argsort(rewards, kind="stable")
    assert (np.diff(advantages[order]) >= -1e-12).all()
