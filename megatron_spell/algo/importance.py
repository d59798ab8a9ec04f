"""What a token counts that another policy wrote: truncated importance weights, and masks where they make no sense.

The ratio is that of *raw* probabilities (temperature 1, whole vocabulary), policy / engine, because those are the only
ones both sides know: the engine's tokens come from its distribution at the sampling temperature, cut to the nucleus,
but what it reports is the raw log-prob, and the normaliser of the tempered one cannot be had from that. Raw against
raw is exactly one where the weights agree, at any temperature. At temperature 1 and top-p 1 it is the exact importance
ratio; at temperature t its logarithm is to first order t times that of the tempered policies, a gentler correction
(docs/decisions/005).

Torch is met through the tensors that are passed in; importing this module does not load it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_spell.config.schema import ImportanceSection

if TYPE_CHECKING:
    import torch

MAX_LOG_RATIO = 20.0  # beyond it a ratio says no more than "absurd", and exp must stay finite


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """Of the trained tokens of one micro-batch: all [A], without gradient, float64 or bool.

    `ratios_A` are those of the chosen form before truncation. `weights_A` are truncated, and zero where masked.
    `kept_A` is False where the token or its row is masked, `row_kept_A` where its row is.
    """

    ratios_A: torch.Tensor
    weights_A: torch.Tensor
    kept_A: torch.Tensor
    row_kept_A: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RowSums:
    """Adds up over the tokens of each row, wherever they lie.

    `row_A` numbers the rows that the tokens belong to, from 0 to `num_rows` - 1; -1 belongs to none. `over_ranks` adds
    up a tensor over the ranks that hold other tokens of the same rows (context parallelism), in place or not.
    """

    row_A: torch.Tensor
    num_rows: int
    over_ranks: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, values_N_A: torch.Tensor) -> torch.Tensor:
        """Every token's row's sums: [N, A] -> [N, A]. All ranks that share rows call it together."""
        slot_A = self.row_A + 1
        sums_N_R = values_N_A.new_zeros(values_N_A.shape[0], self.num_rows + 1).index_add_(1, slot_A, values_N_A)
        return self.over_ranks(sums_N_R)[:, slot_A]


def log_ratios(log_probs_A: torch.Tensor, engine_log_probs_A: torch.Tensor) -> torch.Tensor:
    """Raw log-probs of policy and engine, in nats -> log(policy / engine) within +-MAX_LOG_RATIO; float64 [A].

    NaN where either is.
    """
    difference_A = log_probs_A.detach().double() - engine_log_probs_A.double()
    return difference_A.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def importance_of(
    log_probs_A: torch.Tensor, engine_log_probs_A: torch.Tensor, row_sums: RowSums, section: ImportanceSection
) -> Importance:
    """Importance weights of tokens from raw log-probs of policy and engine [A], in nats.

    `section.form` says what weighs a token, with r its own ratio and the others those of its row:
    `token`: r (truncated: IMPALA, arXiv 1802.01561; between engine and trainer known as TIS);
    `sequence_mean`: the geometric mean exp(mean log r) (GSPO, arXiv 2507.18071, in its token form with the weight
    detached);
    `sequence_product`: the product of all r, which is the exact importance weight of the row.
    Each is cut at `section.cap`.

    A token is masked when its ratio lies outside the token bounds or is NaN, and all of a row when the geometric mean
    of its ratios lies outside the row bounds (or is NaN: a NaN anywhere in the row).
    """
    log_ratios_A = log_ratios(log_probs_A, engine_log_probs_A)
    summed_2_A = log_ratios_A.new_ones(2, log_ratios_A.shape[0])
    summed_2_A[0] = log_ratios_A
    total_A, count_A = row_sums(summed_2_A)
    mean_A = total_A / count_A
    chosen_A = {"token": log_ratios_A, "sequence_mean": mean_A, "sequence_product": total_A}[section.form]
    ratios_A = chosen_A.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    row_kept_A = _within(mean_A, section.mask_row_low, section.mask_row_high)
    kept_A = row_kept_A & _within(log_ratios_A, section.mask_token_low, section.mask_token_high)
    return Importance(ratios_A, ratios_A.clamp(max=section.cap).where(kept_A, 0.0), kept_A, row_kept_A)


def _within(log_ratios_A: torch.Tensor, low: float, high: float | None) -> torch.Tensor:
    """Whether low <= ratio <= high; a NaN is not."""
    lowest, highest = math.log(low) if low > 0 else -math.inf, math.inf if high is None else math.log(high)
    return (log_ratios_A >= lowest) & (log_ratios_A <= highest)
