"""95 % intervals of a mean over seeds and questions."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval; `low` and `high` are None when nothing can be said of its error."""

    mean: float
    low: float | None
    high: float | None

    @property
    def sign(self) -> int | None:
        """-1 or 1 where the interval lies on one side of zero, else None."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return None
        return 1 if self.low > 0 else -1


def over_seeds_and_questions(values_S_Q: np.ndarray) -> Estimate:
    """The mean of [S, Q] figures, for other seeds and other questions of the same kind. Raises ValueError when empty.

    Seeds and questions are crossed random effects. The mean's variance has two parts, from the mean squares of a
    two-way analysis of variance: (MS_seeds - MS_rest) / SQ and MS_questions / SQ. Each goes in with the squared
    Student's t of its own degrees of freedom, as in modified large-sample intervals (Graybill and Wang 1980). A
    bootstrap over three seeds would be too narrow where seeds matter: it never draws a seed that it has not seen. With
    one seed the interval is for other questions only.
    """
    num_seeds, num_questions = values_S_Q.shape
    if not values_S_Q.size:
        raise ValueError("the mean of no figures")
    if num_questions == 1:
        return over_seeds(values_S_Q[:, 0])
    if num_seeds == 1:
        return over_seeds(values_S_Q[0])
    mean = values_S_Q.mean()
    of_seeds_S, of_questions_Q = values_S_Q.mean(axis=1) - mean, values_S_Q.mean(axis=0) - mean
    rest_S_Q = values_S_Q - mean - of_seeds_S[:, None] - of_questions_Q[None]
    seeds = num_questions * np.sum(of_seeds_S**2) / (num_seeds - 1)
    questions = num_seeds * np.sum(of_questions_Q**2) / (num_questions - 1)
    rest = np.sum(rest_S_Q**2) / ((num_seeds - 1) * (num_questions - 1))
    parts = _t(num_seeds - 1) ** 2 * max(seeds - rest, 0) + _t(num_questions - 1) ** 2 * max(questions, rest)
    return _around(mean, np.sqrt(parts / values_S_Q.size))


def over_seeds(values_S: np.ndarray) -> Estimate:
    """Student's t over independent figures, such as one a seed. Raises ValueError when there is none."""
    if not values_S.size:
        raise ValueError("the mean of no figures")
    if values_S.size == 1:
        return Estimate(float(values_S[0]), None, None)
    error = values_S.std(ddof=1) / np.sqrt(values_S.size)
    return _around(values_S.mean(), _t(values_S.size - 1) * error)


def _t(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _around(mean: float, half: float) -> Estimate:
    return Estimate(float(mean), float(mean - half), float(mean + half))
