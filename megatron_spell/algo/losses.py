"""The policy loss as a weighted sum over tokens, so that bins, micro-batches and ranks only have to add up.

Torch is met through the tensors that are passed in; importing this module does not load it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from megatron_spell.algo.errors import AlgoError
from megatron_spell.types.batches import TrainRow
from megatron_spell.types.play import Role

if TYPE_CHECKING:
    import torch


def row_weights(rows: Sequence[TrainRow], mode: Literal["per_role", "token_mean"]) -> np.ndarray:
    """Weight of each response token of each row; float64 [R], one number per row as its tokens weigh the same.

    `per_role` (the paper's objective): for each role the mean over its groups of [sum of A * ratio over the group's
    tokens / the group's token count], the roles added; a token weighs 1 / (groups of its role * tokens of its group).
    `token_mean` (the reference's aggregation, without its dependence on micro-batches): 1 / tokens of all rows.

    Raises:
        AlgoError: a row has an empty response, one group holds two roles, or the mode is unknown.
    """
    for index, row in enumerate(rows):
        if row.response_ids_A.size == 0:
            raise AlgoError(f"row {index} ({row.role}, group {row.group}) has no response token; leave such rows out")
    lengths_R = np.array([row.response_ids_A.size for row in rows], dtype=np.int64)
    if mode == "token_mean":
        return np.full(len(rows), 1.0 / max(int(lengths_R.sum()), 1))
    if mode != "per_role":
        raise AlgoError(f"algo.loss = {mode!r} is not a loss; use per_role or token_mean")
    return _per_role_weights(rows, lengths_R)


def _per_role_weights(rows: Sequence[TrainRow], lengths_R: np.ndarray) -> np.ndarray:
    tokens_of_group: Counter[int] = Counter()
    role_of_group: dict[int, Role] = {}
    for row, length in zip(rows, lengths_R):
        if role_of_group.setdefault(row.group, row.role) is not row.role:
            raise AlgoError(f"group {row.group} holds a {role_of_group[row.group]} and a {row.role}; number them apart")
        tokens_of_group[row.group] += int(length)
    groups_of_role = Counter(role_of_group.values())
    return np.array([1.0 / (groups_of_role[row.role] * tokens_of_group[row.group]) for row in rows])


def policy_loss(
    log_probs_A: torch.Tensor,
    old_log_probs_A: torch.Tensor | None,
    advantages_A: torch.Tensor,
    weights_A: torch.Tensor,
    clip_low: float,
    clip_high: float,
    importance_cap: float,
) -> torch.Tensor:
    """-sum over tokens of w * min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A); a scalar.

    All inputs are [A] (the trained tokens of one micro-batch) in nats; the result has the dtype of `log_probs_A`.
    `old_log_probs_A` None means exactly on-policy: the ratio is one with the gradient of the log-prob, so the loss is
    the paper's -sum w * A and clipping never acts. Otherwise they are the log-probs of the policy that wrote the
    tokens, and the ratio is their truncated importance weight: no token counts more than `importance_cap` times. The
    truncation holds back the size of the step only; a token whose advantage is negative keeps its direction there,
    which a plain clamp would silence.
    """
    advantages_A, weights_A = advantages_A.to(log_probs_A), weights_A.to(log_probs_A)
    one_A = (log_probs_A - log_probs_A.detach()).exp()
    if old_log_probs_A is None:
        return -(weights_A * advantages_A * one_A).sum()
    importance_A = (log_probs_A.detach() - old_log_probs_A.to(log_probs_A)).exp().clamp(max=importance_cap)
    ratio_A = importance_A * one_A
    clipped_A = ratio_A.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -(weights_A * (ratio_A * advantages_A).minimum(clipped_A * advantages_A)).sum()
