"""Figures of held-out questions: accuracy and its interval, pass@k, accuracy by length, the longest usable length.

A question's share is the share of its samples that are right. Intervals are of 95 %, from bootstrap over questions with
a fixed seed; questions on the same documents are drawn as if they were independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BOOTSTRAP_DRAWS = 2000
SHORTEST_BUCKET = 256  # tokens
MIN_QUESTIONS = 5  # in a bucket, for it to have a say in the longest usable length


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions, with its interval."""

    mean: float
    low: float
    high: float
    num_questions: int


@dataclass(frozen=True, slots=True)
class UsableLength:
    """In document tokens, with its interval; `at_least` when every length asked about is usable."""

    tokens: float
    low: float
    high: float
    at_least: bool


def accuracy(shares: Sequence[float]) -> Estimate:
    """Raises ValueError when there is no question."""
    values = np.asarray(shares, dtype=np.float64)
    if not values.size:
        raise ValueError("accuracy of no questions")
    low, high = _interval(values[_resamples(values.size)].mean(axis=1))
    return Estimate(float(values.mean()), low, high, int(values.size))


def weighted(groups: Sequence[Sequence[float]], weights: Sequence[float]) -> Estimate:
    """The weighted sum of the groups' means, as an average over benchmarks is; questions are drawn within each group.

    Raises ValueError when a group is empty or has no weight.
    """
    if len(groups) != len(weights) or not all(len(group) for group in groups):
        raise ValueError(
            f"{len(groups)} groups of {[len(group) for group in groups]} questions, {len(weights)} weights"
        )
    mean, draws = 0.0, np.zeros(BOOTSTRAP_DRAWS)
    for number, (group, weight) in enumerate(zip(groups, weights)):
        values = np.asarray(group, dtype=np.float64)
        mean += weight * float(values.mean())
        # Groups of one size must not share their draws: their errors are independent.
        draws += weight * values[_resamples(values.size, stream=number)].mean(axis=1)
    low, high = _interval(draws)
    return Estimate(mean, low, high, sum(len(group) for group in groups))


def pass_at(num_right: int, num_samples: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) that at least one of k samples is right (arXiv 2107.03374).

    Raises ValueError unless 0 <= num_right <= num_samples and 1 <= k <= num_samples.
    """
    if not 0 <= num_right <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_right} right in {num_samples} samples")
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def ladder(num_samples: int) -> list[int]:
    """The k of pass@k: powers of two up to the number of samples, and that number."""
    powers = [2**exponent for exponent in range(num_samples.bit_length())]
    return powers if powers[-1] == num_samples else [*powers, num_samples]


def bucket(num_tokens: int) -> int:
    """The upper bound of a length's bucket: a power of two, 256 at least."""
    return max(SHORTEST_BUCKET, 1 << max(num_tokens - 1, 0).bit_length())


def usable_length(shares: Sequence[float], num_tokens: Sequence[int], usable: float) -> UsableLength | None:
    """The longest length at which accuracy still is `usable`, with every shorter one usable too.

    A bucket stands at the geometric mean of its questions' lengths; buckets of fewer than MIN_QUESTIONS questions have
    no say. Between the last usable bucket and the next, which is not, accuracy is taken as linear in log length, and
    the length is where it crosses `usable`. 0 when the shortest bucket is not usable; the place of the longest, as a
    lower bound, when all are; None when no bucket has a say.
    """
    found = _LengthFinder(num_tokens, usable)
    if not found.places.size:
        return None
    values = np.asarray(shares, dtype=np.float64)
    low, high = _interval(found.of_draws(values, _resamples(values.size)))
    tokens = found.tokens(found.means(values[None])[0])
    return UsableLength(tokens, low, high, at_least=tokens == float(found.places[-1]))


def usable_text(length: UsableLength | None) -> str:
    """For a reader."""
    if length is None:
        return f"unknown (no bucket has {MIN_QUESTIONS} questions)"
    return f"{'at least ' if length.at_least else ''}{length.tokens:.0f} tokens"


def paired(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The mean change of the same questions' shares, with its interval over the questions.

    Raises ValueError when they are not as many.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} questions before and {len(after)} after are not pairs")
    return accuracy(np.subtract(after, before).tolist())


def paired_usable_length(
    before: Sequence[float], after: Sequence[float], num_tokens: Sequence[int], usable: float
) -> Estimate | None:
    """The change of the longest usable length, in tokens: both lengths are found on the same draws of questions."""
    found = _LengthFinder(num_tokens, usable)
    if not found.places.size:
        return None
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    draws = _resamples(first.size)
    low, high = _interval(found.of_draws(second, draws) - found.of_draws(first, draws))
    change = found.tokens(found.means(second[None])[0]) - found.tokens(found.means(first[None])[0])
    return Estimate(change, low, high, int(first.size))


class _LengthFinder:
    def __init__(self, num_tokens: Sequence[int], usable: float) -> None:
        buckets = np.array([bucket(tokens) for tokens in num_tokens])
        kept = [b for b in np.unique(buckets) if (buckets == b).sum() >= MIN_QUESTIONS]
        logs = np.log2(np.maximum(num_tokens, 1))
        self._members = np.array([buckets == b for b in kept], dtype=np.float64).reshape(len(kept), len(buckets))
        self.places = np.array([2 ** logs[buckets == b].mean() for b in kept])
        self._usable = usable

    def means(self, shares_R_Q: np.ndarray, counts_R_Q: np.ndarray | None = None) -> np.ndarray:
        """Accuracy in every bucket, [R, buckets]; NaN where a draw holds none of a bucket's questions."""
        counts_R_Q = np.ones_like(shares_R_Q) if counts_R_Q is None else counts_R_Q
        with np.errstate(invalid="ignore"):
            return (counts_R_Q * shares_R_Q) @ self._members.T / (counts_R_Q @ self._members.T)

    def tokens(self, means: np.ndarray) -> float:
        places, means = self.places[np.isfinite(means)], means[np.isfinite(means)]
        failing = np.flatnonzero(means < self._usable)
        if not places.size or 0 in failing:
            return 0.0
        if not failing.size:
            return float(places[-1])
        last, next_ = failing[0] - 1, failing[0]
        part = (means[last] - self._usable) / (means[last] - means[next_])
        return float(places[last] * (places[next_] / places[last]) ** part)

    def of_draws(self, shares: np.ndarray, draws: np.ndarray) -> np.ndarray:
        counts = np.stack([np.bincount(draw, minlength=shares.size) for draw in draws]).astype(np.float64)
        return np.array([self.tokens(means) for means in self.means(shares[None], counts)])


def _resamples(num_questions: int, stream: int = 0) -> np.ndarray:
    """Numbers of questions, drawn with replacement: [BOOTSTRAP_DRAWS, Q]."""
    return np.random.default_rng(stream).integers(num_questions, size=(BOOTSTRAP_DRAWS, num_questions))


def _interval(figures: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(figures, [0.025, 0.975])
    return float(low), float(high)
