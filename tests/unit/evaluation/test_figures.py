import itertools
import math

import numpy as np
import pytest

from megatron_spell.evaluation.figures import (
    accuracy,
    bucket,
    ladder,
    paired,
    paired_usable_length,
    pass_at,
    usable_length,
    usable_text,
)


def test_the_interval_holds_the_mean_and_shrinks_with_more_questions():
    few, many = accuracy([0.0, 1.0, 0.5, 0.25]), accuracy([0.0, 1.0, 0.5, 0.25] * 50)
    assert few.mean == many.mean == pytest.approx(0.4375)
    assert few.low < few.mean < few.high
    assert many.high - many.low < few.high - few.low
    certain = accuracy([1.0, 1.0])
    assert (certain.low, certain.high) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no questions"):
        accuracy([])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    drawn = [accuracy(rng.beta(2, 3, size=60).tolist()) for _ in range(200)]
    assert 0.90 <= np.mean([one.low <= 0.4 <= one.high for one in drawn]) <= 0.99


def test_pass_at_k_is_the_share_of_draws_without_replacement_that_hold_a_right_one():
    for num_right, k in itertools.product(range(9), (1, 2, 4, 8)):
        samples = [True] * num_right + [False] * (8 - num_right)
        draws = list(itertools.combinations(samples, k))
        assert pass_at(num_right, 8, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_at(3, 8, 1) == pytest.approx(3 / 8)


@pytest.mark.parametrize("wrong", [(9, 8, 1), (-1, 8, 1), (2, 8, 0), (2, 8, 9)])
def test_pass_at_k_of_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="pass@"):
        pass_at(*wrong)


def test_k_goes_up_in_powers_of_two_and_ends_with_all_samples():
    assert ladder(8) == [1, 2, 4, 8]
    assert ladder(1) == [1]
    assert ladder(6) == [1, 2, 4, 6]


def test_buckets_are_named_by_their_upper_bound():
    lengths = (0, 1, 256, 257, 512, 513, 1024, 100_000, 131_072)
    assert [bucket(length) for length in lengths] == [256, 256, 256, 512, 512, 1024, 1024, 131_072, 131_072]


def at_lengths(*accuracies: float, each: int = 20) -> tuple[list[float], list[int]]:
    """Shares and lengths of `each` questions of 200, 400, 800 and 1600 tokens, a little below and above the mean."""
    shares, tokens = [], []
    for mean, length in zip(accuracies, (200, 400, 800, 1600)):
        shares += [mean - 0.1, mean + 0.1] * (each // 2)
        tokens += [length] * each
    return shares, tokens


def test_the_usable_length_lies_where_accuracy_crosses_in_log_length():
    length = usable_length(*at_lengths(0.8, 0.7, 0.3, 0.2), usable=0.5)
    assert length.tokens == pytest.approx(400 * math.sqrt(2))  # halfway between 0.7 and 0.3, from 400 to 800 tokens
    assert length.low < length.tokens < length.high
    assert not length.at_least


def test_it_grows_with_every_rise_around_the_crossing():
    found = [usable_length(*at_lengths(0.9, rise, 0.3), usable=0.5).tokens for rise in (0.45, 0.5, 0.6, 0.7)]
    assert found == sorted(set(found))


def test_a_longer_length_counts_only_when_all_shorter_ones_are_usable():
    assert usable_length(*at_lengths(0.8, 0.2, 0.9, 0.9), usable=0.5).tokens < 400
    assert usable_length(*at_lengths(0.4, 0.9, 0.9, 0.9), usable=0.5).tokens == 0


def test_what_is_usable_throughout_is_a_lower_bound():
    length = usable_length(*at_lengths(0.8, 0.7, 0.6, 0.6), usable=0.5)
    assert length.at_least
    assert length.tokens == pytest.approx(1600)
    assert usable_text(length) == "at least 1600 tokens"


def test_buckets_of_few_questions_have_no_say():
    shares, tokens = at_lengths(0.8, 0.8)
    length = usable_length([*shares, 0.0, 0.0, 0.0, 0.0], [*tokens, 800, 800, 800, 800], usable=0.5)
    assert length.at_least and length.tokens == pytest.approx(400)
    few = usable_length([0.5, 0.2], [300, 3000], usable=0.5)
    assert few is None
    assert usable_text(few) == "unknown (no bucket has 5 questions)"


def test_the_place_of_a_bucket_is_the_geometric_mean_of_its_lengths():
    length = usable_length([1.0] * 10, [128, 200] * 5, usable=0.5)
    assert length.tokens == pytest.approx(math.sqrt(128 * 200))


def test_pairs_see_a_change_that_separate_intervals_do_not():
    rng = np.random.default_rng(3)
    before = rng.uniform(0, 0.9, size=100)
    after = before + rng.uniform(0.02, 0.1, size=100)
    change = paired(before.tolist(), after.tolist())
    assert change.mean == pytest.approx(np.mean(after - before))
    assert 0 < change.low < change.mean < change.high
    assert accuracy(before.tolist()).high > accuracy(after.tolist()).low
    shuffled = paired(before.tolist(), rng.permutation(after).tolist())
    assert shuffled.low < 0 < shuffled.high
    with pytest.raises(ValueError, match="are not pairs"):
        paired([0.5], [0.5, 0.5])


def test_the_change_of_the_usable_length_is_of_the_same_questions():
    before, tokens = at_lengths(0.8, 0.6, 0.3, 0.2)
    after, _ = at_lengths(0.9, 0.8, 0.6, 0.3)
    change = paired_usable_length(before, after, tokens, 0.5)
    lengths = [usable_length(shares, tokens, 0.5).tokens for shares in (before, after)]
    assert change.mean == pytest.approx(lengths[1] - lengths[0])
    assert 0 < change.low <= change.mean <= change.high
    same = paired_usable_length(before, before, tokens, 0.5)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert paired_usable_length([0.1], [0.2], [300], 0.5) is None
