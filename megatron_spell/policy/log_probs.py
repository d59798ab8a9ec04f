"""Log-probs of given labels from vocabulary-parallel logits, in chunks, so that long logits are never held.

Every tensor-parallel rank holds a block of vocabulary columns. The softmax needs two sums over the group (the largest
logit and the sum of exponentials) and one for the label's logit, which lies on one rank.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class TokenScores(NamedTuple):
    """Per trained token, float32 [A]: `log_probs_A` at the sampling temperature (the only one with a gradient), the
    raw ones at temperature 1 (what an engine reports), and the entropy of the raw distribution in nats."""

    log_probs_A: Tensor
    raw_log_probs_A: Tensor
    entropy_A: Tensor


class VocabParallelLogProbs(torch.autograd.Function):
    """logits [A, W/tp] (float32, this rank's columns), labels [A] (global ids) -> log-probs [A]."""

    @staticmethod
    def forward(ctx, logits_A_W, labels_A, first_label, group):
        shifted = logits_A_W - _all_reduce(logits_A_W.amax(-1), dist.ReduceOp.MAX, group).unsqueeze(-1)
        total_A = _all_reduce(shifted.exp().sum(-1), dist.ReduceOp.SUM, group)
        mine, local_A = share_of(labels_A, first_label, logits_A_W.shape[-1])
        label_logits_A = shifted.gather(-1, local_A.unsqueeze(-1)).squeeze(-1) * mine
        ctx.save_for_backward((shifted - total_A.log().unsqueeze(-1)).exp(), mine, local_A)
        return _all_reduce(label_logits_A, dist.ReduceOp.SUM, group) - total_A.log()

    @staticmethod
    def backward(ctx, grad_A):
        probs_A_W, mine, local_A = ctx.saved_tensors
        grad_logits = -probs_A_W * grad_A.unsqueeze(-1)
        grad_logits.scatter_add_(-1, local_A.unsqueeze(-1), (grad_A * mine).unsqueeze(-1))
        return grad_logits, None, None, None


def score_tokens(
    hidden_A_D: Tensor,
    labels_A: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    temperature: float,
    first_label: int,
    group: dist.ProcessGroup,
    chunk: int,
) -> TokenScores:
    """Score labels from the hidden states that predict them.

    `head` maps [a, D] to float32 logits [a, W/tp], whose first column is label `first_label`. When A exceeds `chunk`,
    each chunk's logits are dropped after the forward pass and computed again in the backward pass.
    """

    def score(hidden_a_D: Tensor, labels_a: Tensor) -> tuple[Tensor, ...]:
        logits = head(hidden_a_D)
        raw = logits.detach()
        log_probs = VocabParallelLogProbs.apply(logits / temperature, labels_a, first_label, group)
        raw_log_probs = log_probs.detach()
        if temperature != 1.0:
            raw_log_probs = VocabParallelLogProbs.apply(raw, labels_a, first_label, group)
        return log_probs, raw_log_probs, entropy(raw, group)

    if hidden_A_D.shape[0] <= chunk:
        return TokenScores(*score(hidden_A_D, labels_A))
    pieces = [
        checkpoint(score, hidden_a, labels_a, use_reentrant=False, preserve_rng_state=False)
        for hidden_a, labels_a in zip(hidden_A_D.split(chunk), labels_A.split(chunk))
    ]
    return TokenScores(*(torch.cat(parts) for parts in zip(*pieces)))


@torch.no_grad()
def entropy(logits_A_W: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Entropy in nats of the distributions whose columns are spread over `group`: [A, W/tp] -> [A]."""
    shifted = logits_A_W - _all_reduce(logits_A_W.amax(-1), dist.ReduceOp.MAX, group).unsqueeze(-1)
    weights = shifted.exp()
    # A masked column has weight 0 and logit -inf: its product is 0, not NaN.
    sums_2_A = torch.stack([weights.sum(-1), (weights * shifted.clamp_min(-1e30)).sum(-1)])
    total_A, weighted_A = _all_reduce(sums_2_A, dist.ReduceOp.SUM, group)
    return total_A.log() - weighted_A / total_A


def share_of(indices_A: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Which indices lie in this rank's [first, first + count), and where in it (0 for those that do not)."""
    mine = (indices_A >= first) & (indices_A < first + count)
    return mine, torch.where(mine, indices_A - first, 0)


def _all_reduce(x: Tensor, op: dist.ReduceOp, group: dist.ProcessGroup) -> Tensor:
    if group.size() > 1:
        dist.all_reduce(x, op=op, group=group)
    return x
