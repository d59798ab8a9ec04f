"""Majority of the verifier's votes. A vote is True (same), False (not the same) or None (could not be read)."""

from collections.abc import Sequence

Votes = Sequence[bool | None]


def _counts(votes: Votes) -> tuple[int, int]:
    """Numbers of yes and of no."""
    return sum(v is True for v in votes), sum(v is False for v in votes)


def majority(votes: Votes) -> bool | None:
    """True with strictly more than half of the valid votes yes (the paper's rule), else False; None without any."""
    num_yes, num_no = _counts(votes)
    return num_yes > num_no if num_yes + num_no else None


def settled(votes_so_far: Votes, num_total: int) -> bool:
    """Whether no outcome of the votes still missing from `num_total` can change the majority."""
    num_yes, num_no = _counts(votes_so_far)
    num_left = num_total - len(votes_so_far)
    return num_left <= 0 or num_yes > num_no + num_left or num_no >= num_yes + num_left


def least_to_settle(votes_so_far: Votes, num_total: int) -> int:
    """The least number of further votes that can settle the majority, 0 when it is settled: all yes, or all no."""
    for more in range(num_total - len(votes_so_far)):
        if any(settled([*votes_so_far, *[vote] * more], num_total) for vote in (True, False)):
            return more
    return max(0, num_total - len(votes_so_far))


def judgment_rewards(votes: Votes) -> list[float]:
    """1 for each vote that agrees with the majority, 0 for the others and for those that could not be read."""
    decided = majority(votes)
    return [float(v is not None and v == decided) for v in votes]


def trainable(votes: Votes, rule: float, *, needs_rule: bool = True) -> bool:
    """Whether the verifier may learn from the group.

    Agreement among the valid votes must lie strictly between one half and one, and (`needs_rule`) the majority must
    equal the rule's verdict; otherwise a verifier trained on its own majority drifts towards saying yes always
    (reported by the paper).
    """
    num_yes, num_no = _counts(votes)
    return num_yes > 0 and num_no > 0 and num_yes != num_no and (not needs_rule or majority(votes) == bool(rule))
