"""Group-normalised advantages (paper section 3.3; GRPO without a value model)."""

import numpy as np

from megatron_spell.algo.errors import AlgoError


def normalise(rewards: np.ndarray, epsilon: float) -> np.ndarray:
    """(r - mean) / (std + epsilon) over one group, std with ddof 1; float64, the shape of `rewards` [group].

    The group is the answers of one question, the votes on one answer, or the questions of one task. A group of one
    and a group whose rewards are all equal have no baseline to be compared with: zeros, never NaN.

    Raises:
        AlgoError: a reward is not finite.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if not np.isfinite(rewards).all():
        raise AlgoError(f"rewards {rewards.tolist()} are not all finite; find the scorer that gave them")
    if rewards.size < 2 or np.ptp(rewards) == 0:
        return np.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + epsilon)
