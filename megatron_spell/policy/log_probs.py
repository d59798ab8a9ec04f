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
    """logits [A, W/tp] (float32, this rank's columns), labels [A] (global ids) -> log-probs [A] at the temperature.

    Two blocks as large as the logits are held at most, the probabilities and on the way back their gradient.
    """

    @staticmethod
    def forward(ctx, logits_A_W, labels_A, first_label, group, temperature):
        shifted = _below_largest(logits_A_W, group).div_(temperature)
        mine, local_A = share_of(labels_A, first_label, logits_A_W.shape[-1])
        label_logits_A = _chosen(shifted, mine, local_A)
        probs_A_W = shifted.exp_()
        total_A, label_logits_A = _all_reduce(
            torch.stack([probs_A_W.sum(-1), label_logits_A]), dist.ReduceOp.SUM, group
        )
        ctx.save_for_backward(probs_A_W.div_(total_A.unsqueeze(-1)), mine, local_A)
        ctx.temperature = temperature
        return label_logits_A - total_A.log()

    @staticmethod
    def backward(ctx, grad_A):
        probs_A_W, mine, local_A = ctx.saved_tensors
        grad_A = grad_A / ctx.temperature
        grad_logits = probs_A_W * -grad_A.unsqueeze(-1)
        grad_logits.scatter_add_(-1, local_A.unsqueeze(-1), (grad_A * mine).unsqueeze(-1))
        return grad_logits, None, None, None, None


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
        raw = raw_scores(logits.detach(), labels_a, first_label, group)
        return VocabParallelLogProbs.apply(logits, labels_a, first_label, group, temperature), *raw

    if hidden_A_D.shape[0] <= chunk:
        return TokenScores(*score(hidden_A_D, labels_A))
    pieces = [
        checkpoint(score, hidden_a, labels_a, use_reentrant=False, preserve_rng_state=False)
        for hidden_a, labels_a in zip(hidden_A_D.split(chunk), labels_A.split(chunk))
    ]
    return TokenScores(*(torch.cat(parts) for parts in zip(*pieces)))


@torch.no_grad()
def raw_scores(
    logits_A_W: Tensor, labels_A: Tensor, first_label: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Log-probs of the labels and entropies in nats of the distributions whose columns are spread over `group`, [A]."""
    shifted = _below_largest(logits_A_W, group)
    label_logits_A = _chosen(shifted, *share_of(labels_A, first_label, logits_A_W.shape[-1]))
    weights = shifted.exp()
    total_A = weights.sum(-1)
    # A masked column has weight 0 and logit -inf: its product is 0, not NaN.
    weighted_A = weights.mul_(shifted.clamp_min_(-1e30)).sum(-1)
    sums_3_A = _all_reduce(torch.stack([total_A, weighted_A, label_logits_A]), dist.ReduceOp.SUM, group)
    total_A, weighted_A, label_logits_A = sums_3_A
    return label_logits_A - total_A.log(), total_A.log() - weighted_A / total_A


def _below_largest(logits_A_W: Tensor, group: dist.ProcessGroup) -> Tensor:
    """A new tensor: the logits less the largest of all columns."""
    return logits_A_W - _all_reduce(logits_A_W.amax(-1), dist.ReduceOp.MAX, group).unsqueeze(-1)


def _chosen(logits_A_W: Tensor, mine_A: Tensor, local_A: Tensor) -> Tensor:
    """The labels' logits that lie on this rank, 0 for the others: [A]."""
    return logits_A_W.gather(-1, local_A.unsqueeze(-1)).squeeze(-1).masked_fill(~mine_A, 0.0)


def share_of(indices_A: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Which indices lie in this rank's [first, first + count), and where in it (0 for those that do not)."""
    mine = (indices_A >= first) & (indices_A < first + count)
    return mine, torch.where(mine, indices_A - first, 0)


def _all_reduce(x: Tensor, op: dist.ReduceOp, group: dist.ProcessGroup) -> Tensor:
    if group.size() > 1:
        dist.all_reduce(x, op=op, group=group)
    return x
