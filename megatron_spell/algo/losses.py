"""The policy loss as a weighted sum over tokens, so that bins, micro-batches and ranks only have to add up.

Torch is met through the tensors that are passed in; importing this module does not load it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from megatron_spell.algo.errors import AlgoError
from megatron_spell.algo.importance import Importance
from megatron_spell.types.batches import TrainRow
from megatron_spell.types.play import Role

if TYPE_CHECKING:
    import torch


def row_weights(
    rows: Sequence[TrainRow],
    mode: Literal["per_role", "token_mean"],
    role_weights: Mapping[Role, float] = MappingProxyType({}),
) -> np.ndarray:
    """Weight of each response token of each row; float64 [R], one number per row as its tokens weigh the same.

    `per_role` (the paper's objective): for each role the mean over its groups of [sum of A * ratio over the group's
    tokens / the group's token count], the roles added; a token weighs 1 / (groups of its role * tokens of its group).
    `token_mean` (the reference's aggregation, without its dependence on micro-batches): 1 / tokens of all rows.
    Either is multiplied by the role's weight, 1 where `role_weights` does not name it.

    A row with an empty response has no token to weigh: it adds nothing to its group's count and its own weight is 0. A
    group of nothing but such rows does not count among the groups of its role.

    Raises:
        AlgoError: one group holds two roles, or the mode is unknown.
    """
    lengths_R = np.array([row.response_ids_A.size for row in rows], dtype=np.int64)
    of_role_R = np.array([role_weights.get(row.role, 1.0) for row in rows], dtype=np.float64)
    if mode == "token_mean":
        return of_role_R / max(int(lengths_R.sum()), 1)
    if mode != "per_role":
        raise AlgoError(f"algo.loss = {mode!r} is not a loss; use per_role or token_mean")
    return of_role_R * _per_role_weights(rows, lengths_R)


def _per_role_weights(rows: Sequence[TrainRow], lengths_R: np.ndarray) -> np.ndarray:
    tokens_of_group: Counter[int] = Counter()
    role_of_group: dict[int, Role] = {}
    for row, length in zip(rows, lengths_R):
        if role_of_group.setdefault(row.group, row.role) is not row.role:
            raise AlgoError(f"group {row.group} holds a {role_of_group[row.group]} and a {row.role}; number them apart")
        tokens_of_group[row.group] += int(length)
    groups_of_role = Counter(role for group, role in role_of_group.items() if tokens_of_group[group])
    return np.array(
        [
            1.0 / (groups_of_role[row.role] * tokens_of_group[row.group]) if length else 0.0
            for row, length in zip(rows, lengths_R)
        ]
    )


def token_losses(
    log_probs_A: torch.Tensor,
    advantages_A: torch.Tensor,
    weights_A: torch.Tensor,
    importance: Importance | None,
    clip_low: float | None,
    clip_high: float | None,
) -> torch.Tensor:
    """-w * min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) of each token [A]; the loss is their sum.

    All inputs are [A] (the trained tokens of one micro-batch), log-probs in nats at the sampling temperature; the
    result has the dtype of `log_probs_A`. `importance` None means exactly on-policy: the ratio is one with the gradient
    of the log-prob, so the loss is the paper's -sum w * A and clipping never acts. Otherwise the ratio has the value of
    the truncated importance weight and that same gradient: the clip (PPO, arXiv 1707.06347) silences tokens that have
    moved far enough, while the truncation only holds back the size of the step, so that a token whose advantage is
    negative keeps its direction there. Without a clip (None) this is the decoupled objective (arXiv 2110.00641, AReaL
    2505.24298) for one update a batch, where the proximal policy is the present one.

    A masked token's loss and gradient are zero. The weights were settled before: what is masked stays in their
    denominators, so that no other token counts more for it.
    """
    advantages_A, weights_A = advantages_A.to(log_probs_A), weights_A.to(log_probs_A)
    one_A = (log_probs_A - log_probs_A.detach()).exp()
    if importance is None:
        return -(weights_A * advantages_A * one_A)
    ratio_A = importance.weights_A.to(log_probs_A) * one_A
    lower, upper = clip_bounds(clip_low, clip_high)
    surrogate_A = (ratio_A * advantages_A).minimum(ratio_A.clamp(lower, upper) * advantages_A)
    return -(weights_A * importance.kept_A * surrogate_A)


def clip_bounds(clip_low: float | None, clip_high: float | None) -> tuple[float, float]:
    """What ratios are clipped to; None on a side leaves it open."""
    return 0.0 if clip_low is None else 1.0 - clip_low, math.inf if clip_high is None else 1.0 + clip_high
