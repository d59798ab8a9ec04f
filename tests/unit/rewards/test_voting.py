from itertools import product

import pytest

from megatron_spell.rewards.voting import judgment_rewards, least_to_settle, majority, settled, trainable

Y, N, X = True, False, None


@pytest.mark.parametrize(
    ("votes", "decided"),
    [
        ([Y, Y, N], True),
        ([Y, N, N], False),
        ([Y, N], False),
        ([Y, X, X, X], True),
        ([Y, N, X, X], False),
        ([X, X], None),
        ([], None),
    ],
)
def test_yes_needs_more_than_half_of_the_valid_votes(votes, decided):
    assert majority(votes) is decided


def test_the_majority_does_not_depend_on_the_order():
    for votes in product([Y, N, X], repeat=4):
        assert majority(votes) == majority(votes[::-1])


@pytest.mark.parametrize("num_total", [0, 1, 2, 3, 4, 5])
def test_settled_means_that_no_continuation_changes_the_majority(num_total):
    for num_given in range(num_total + 1):
        for given in product([Y, N, X], repeat=num_given):
            outcomes = {majority((*given, *rest)) for rest in product([Y, N, X], repeat=num_total - num_given)}
            assert settled(given, num_total) == (len(outcomes) == 1), given


@pytest.mark.parametrize("num_total", [0, 1, 2, 3, 4, 5])
def test_the_least_that_can_settle_can_and_less_cannot(num_total):
    for num_given in range(num_total + 1):
        for given in product([Y, N, X], repeat=num_given):
            least = least_to_settle(given, num_total)
            assert (least == 0) == settled(given, num_total)
            for more in range(num_total - num_given + 1):
                can = any(settled((*given, *rest), num_total) for rest in product([Y, N, X], repeat=more))
                assert can == (more >= least), (given, more)


def test_votes_that_agree_with_the_majority_earn_one():
    assert judgment_rewards([Y, N, Y, X]) == [1.0, 0.0, 1.0, 0.0]
    assert judgment_rewards([Y, N, X]) == [0.0, 1.0, 0.0]
    assert judgment_rewards([X, X]) == [0.0, 0.0]
    assert judgment_rewards([]) == []


@pytest.mark.parametrize("num_yes", range(9))
def test_five_to_seven_of_eight_that_agree_with_the_rule_are_trainable(num_yes):
    votes = [Y] * num_yes + [N] * (8 - num_yes)
    split = num_yes not in (0, 4, 8)
    assert trainable(votes, 1.0) == (split and num_yes > 4)
    assert trainable(votes, 0.0) == (split and num_yes < 4)


def test_unreadable_votes_do_not_count_for_training():
    assert not trainable([Y, X, X], 1.0)
    assert not trainable([X, X], 0.0)
    assert trainable([Y, Y, N, X], 1.0)
