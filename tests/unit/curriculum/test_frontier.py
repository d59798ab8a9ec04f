"""The frontier reward's pull: a questioner that follows it asks what is solved half of the time."""

import numpy as np
import pytest

from megatron_spell.config.schema import RewardSection
from megatron_spell.curriculum.curriculum import Curriculum
from megatron_spell.rewards.frontier import question_reward
from megatron_spell.types.play import Outcome
from tests.unit.curriculum.playing import make_curriculum, played

NUM_ANSWERS, NUM_QUESTIONS = 8, 64
SIGMA = RewardSection().frontier_sigma


def asked(difficulty: float, skill: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Difficulties of one step's questions around `difficulty`, and the share of right answers to each."""
    difficulties = difficulty + 0.7 * rng.standard_normal(NUM_QUESTIONS)
    chances = 1 / (1 + np.exp(difficulties - skill))
    return difficulties, rng.binomial(NUM_ANSWERS, chances) / NUM_ANSWERS


def follow(difficulty: float, steps: int, *, skill_gain: float = 0.0, reward=question_reward) -> list[float]:
    """Mean solve rate of each step of a questioner that is trained by policy gradient on its difficulty alone."""
    rng, rates, skill = np.random.default_rng(0), [], 0.0
    for _ in range(steps):
        difficulties, solved = asked(difficulty, skill, rng)
        rewards = np.array([reward(rate, SIGMA) for rate in solved])
        advantages = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
        difficulty += 0.1 * np.mean(advantages * (difficulties - difficulty)) / 0.7
        skill += skill_gain
        rates.append(float(solved.mean()))
    return rates


@pytest.mark.parametrize("difficulty", [-2.5, 0.0, 2.5])
def test_a_questioner_settles_where_half_of_the_answers_are_right(difficulty):
    rates = follow(difficulty, 300)
    assert abs(rates[0] - 0.5) > 0.3 or difficulty == 0.0
    assert np.mean(rates[-100:]) == pytest.approx(0.5, abs=0.04)


def test_it_follows_a_responder_that_gets_better():
    rates = follow(0.0, 400, skill_gain=0.01)  # four units of skill: at the first difficulty 98 % would be right
    assert np.mean(rates[-100:]) == pytest.approx(0.5, abs=0.15)


def test_without_its_peak_in_the_middle_it_would_drift_off():
    rates = follow(0.0, 300, reward=lambda rate, sigma: rate)
    assert np.mean(rates[-50:]) > 0.9


def test_the_metrics_show_the_frontier():
    def middle(curriculum: Curriculum, difficulty: float) -> float:
        _, solved = asked(difficulty, 0.0, np.random.default_rng(2))
        rounds = []
        for index, rate in enumerate(solved):
            right = round(rate * NUM_ANSWERS)
            outcome = {0: Outcome.UNSOLVED, NUM_ANSWERS: Outcome.TRIVIAL}.get(right, Outcome.USABLE)
            rewards = (1.0,) * right + (0.0,) * (NUM_ANSWERS - right)
            rounds.append(played(curriculum.draw(index), rewards=rewards, outcome=outcome))
        curriculum.observe(rounds)
        metrics = curriculum.metrics()
        assert sum(metrics[name] for name in metrics if "/solve_rates/" in name) == pytest.approx(1)
        return metrics["curriculum/solve_rates/to_0.5"] + metrics["curriculum/solve_rates/to_0.75"]

    assert middle(make_curriculum(), 0.0) > 0.5 > 0.1 > middle(make_curriculum(), 4.0)
