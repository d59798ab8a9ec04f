"""Intervals against textbook figures, and against how often they hold the truth."""

import numpy as np
import pytest
from intervals import Estimate, over_seeds, over_seeds_and_questions
from scipy import stats

NUM_SEEDS, NUM_QUESTIONS = 3, 60


def test_students_t_over_three_seeds():
    found = over_seeds(np.array([0.10, 0.12, 0.14]))
    low, high = stats.ttest_1samp([0.10, 0.12, 0.14], 0.0).confidence_interval(0.95)
    assert found.mean == pytest.approx(0.12)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.high - found.mean == pytest.approx(4.302653 * 0.02 / np.sqrt(3), rel=1e-6)


def test_one_seed_has_no_interval_over_seeds_and_one_over_questions():
    assert over_seeds(np.array([0.3])) == Estimate(0.3, None, None)
    shares = np.random.default_rng(0).random(NUM_QUESTIONS)
    assert over_seeds_and_questions(shares[None]) == over_seeds(shares)
    assert over_seeds_and_questions(shares[:, None]) == over_seeds(shares)


def test_mean_squares_by_hand():
    # seed means 1.5 and 4.5, question means 2 and 4, what is left +-0.5: mean squares 9, 4 and 1
    found = over_seeds_and_questions(np.array([[1.0, 2.0], [3.0, 6.0]]))
    half = 12.7062 * np.sqrt((9 - 1 + 4) / 4)  # the t of one degree of freedom, for both
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half), rel=1e-5)


def test_seeds_that_agree_leave_the_questions_interval():
    shares = np.random.default_rng(0).random(NUM_QUESTIONS)
    same = over_seeds_and_questions(np.stack([shares] * 3))
    alone = over_seeds(shares)
    assert (same.mean, same.low, same.high) == pytest.approx((alone.mean, alone.low, alone.high))


def test_equal_figures_have_no_width_and_none_at_all_is_refused():
    assert over_seeds_and_questions(np.full((3, 5), 0.2)) == Estimate(*[pytest.approx(0.2)] * 3)
    for empty in (np.empty((0, 4)), np.empty((3, 0))):
        with pytest.raises(ValueError, match="no figures"):
            over_seeds_and_questions(empty)
    with pytest.raises(ValueError, match="no figures"):
        over_seeds(np.empty(0))


@pytest.mark.parametrize(("seed_sd", "question_sd"), [(0.0, 0.3), (0.03, 0.3), (0.1, 0.3)])
def test_nineteen_in_twenty_hold_the_truth(seed_sd, question_sd):
    """And a bootstrap over the same three seeds would not, where seeds matter."""
    rng, held, drawn_held, trials = np.random.default_rng(0), 0, 0, 400
    for _ in range(trials):
        seeds, questions = rng.normal(size=(NUM_SEEDS, 1)) * seed_sd, rng.normal(size=(1, NUM_QUESTIONS)) * question_sd
        values = seeds + questions + rng.normal(size=(NUM_SEEDS, NUM_QUESTIONS)) * 0.2
        found = over_seeds_and_questions(values)
        held += found.low <= 0 <= found.high
        low, high = bootstrap(values, rng)
        drawn_held += low <= 0 <= high
    assert held / trials >= 0.92
    if seed_sd >= 0.1:
        assert drawn_held / trials < 0.9


def bootstrap(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    seeds = rng.integers(NUM_SEEDS, size=(200, NUM_SEEDS, 1))
    questions = rng.integers(NUM_QUESTIONS, size=(200, 1, NUM_QUESTIONS))
    low, high = np.quantile(values[seeds, questions].mean(axis=(1, 2)), [0.025, 0.975])
    return low, high


@pytest.mark.parametrize(("low", "high", "sign"), [(-2, -1, -1), (1, 2, 1), (-1, 1, None), (None, None, None)])
def test_a_sign_is_told_only_off_zero(low, high, sign):
    assert Estimate(0.5, low, high).sign == sign
