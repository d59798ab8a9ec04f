"""What is measured of the distance between engine and policy, and of its correction, over the tokens of a batch."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_spell.algo.importance import MAX_LOG_RATIO, Importance, log_ratios
from megatron_spell.algo.losses import clip_bounds
from megatron_spell.config.schema import AlgoSection
from megatron_spell.policy import platform
from megatron_spell.policy.log_probs import TokenScores
from megatron_spell.policy.microbatches import BinTensors
from megatron_spell.types.batches import ROLE_INDEX
from megatron_spell.types.play import Role


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Of the trained tokens of one step; the same on every rank.

    `ratio_*` are single tokens' raw ratios policy / engine. k1 = mean -log ratio and k3 = mean(ratio - 1 - log ratio)
    (Schulman, Approximating KL Divergence, 2020), in nats, are taken over the sampled tokens. `correction` is None
    where tokens are not weighed by importance.
    """

    ratio_mean: float
    ratio_max: float
    k1: float
    k3: float
    k3_of_role: dict[Role, float]
    correction: "Correction | None"

    @property
    def masked_share(self) -> float:
        return self.correction.masked_tokens_share if self.correction else 0.0

    def metrics(self) -> dict[str, float]:
        """The figures by their names in metrics.jsonl (docs/running.md)."""
        return {
            "mismatch/ratio/mean": self.ratio_mean,
            "mismatch/ratio/max": self.ratio_max,
            "mismatch/k1": self.k1,
            "mismatch/k3": self.k3,
            **{f"{role}/mismatch/k3": k3 for role, k3 in self.k3_of_role.items()},
            **(self.correction.metrics() if self.correction else {}),
        }


@dataclass(frozen=True, slots=True)
class Correction:
    """Of importance weights: shares of the trained tokens or rows.

    `ratio_*` are of the chosen form before truncation; `weight_mean` after it, masked tokens counting as zero.
    `effective_share` is the effective sample size (sum w)^2 / sum w^2 over the number of tokens. `clipped_*` are tokens
    without a gradient for their clip, `truncated` those at the cap, neither masked.
    """

    ratio_mean: float
    ratio_max: float
    weight_mean: float
    effective_share: float
    truncated_share: float
    clipped_low_share: float
    clipped_high_share: float
    masked_tokens_share: float
    masked_rows_share: float
    masked_tokens_share_of_role: dict[Role, float]

    def metrics(self) -> dict[str, float]:
        return {
            "importance/ratio/mean": self.ratio_mean,
            "importance/ratio/max": self.ratio_max,
            "importance/weight/mean": self.weight_mean,
            "importance/effective_share": self.effective_share,
            "importance/truncated/share": self.truncated_share,
            "importance/clipped_low/share": self.clipped_low_share,
            "importance/clipped_high/share": self.clipped_high_share,
            "importance/masked_tokens/share": self.masked_tokens_share,
            "importance/masked_rows/share": self.masked_rows_share,
            **{f"{role}/importance/masked_tokens/share": s for role, s in self.masked_tokens_share_of_role.items()},
        }


SUMS = ("ratio", "k1", "rows", "chosen", "weight", "weight_squared", "truncated", "low", "high", "masked_rows")
SUMS_OF_ROLE = ("tokens", "k3", "masked")


@dataclass(slots=True)
class MismatchTally:
    """This rank's SUMS, then SUMS_OF_ROLE of each role; and the largest ratio of a token and of the chosen form."""

    algo: AlgoSection
    sums: Tensor = field(
        default_factory=lambda: torch.zeros(len(SUMS) + len(SUMS_OF_ROLE) * len(Role), dtype=torch.float64)
    )
    largest: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))

    @torch.no_grad()
    def add(self, bin_tensors: BinTensors, scores: TokenScores, importance: Importance | None) -> None:
        real_A = bin_tensors.real_A
        # A NaN on either side counts as the largest difference; it would make every mean a NaN.
        log_ratio_A = log_ratios(scores.raw_log_probs_A, bin_tensors.engine_log_probs_A).nan_to_num(nan=-MAX_LOG_RATIO)
        ratio_A = log_ratio_A.exp()
        of_token = {"ratio": ratio_A, "k1": -log_ratio_A, "tokens": real_A, "k3": ratio_A - 1 - log_ratio_A}
        chosen_A = torch.zeros_like(ratio_A)
        if importance is not None:
            chosen_A = importance.ratios_A.nan_to_num(nan=0.0)
            of_token |= self._of_correction(bin_tensors, importance, chosen_A)
        zeros_A = torch.zeros_like(ratio_A)
        sums = [of_token.get(name, zeros_A)[real_A].double().sum() for name in SUMS]
        for index in ROLE_INDEX.values():
            chosen = real_A & (bin_tensors.role_A == index)
            sums += [of_token.get(name, zeros_A)[chosen].double().sum() for name in SUMS_OF_ROLE]
        self.sums += torch.stack(sums).cpu()
        if real_A.any():
            self.largest = self.largest.maximum(torch.stack([ratio_A[real_A].max(), chosen_A[real_A].max()]).cpu())

    def _of_correction(self, bin_tensors: BinTensors, importance: Importance, chosen_A: Tensor) -> dict[str, Tensor]:
        weights_A, kept_A, advantages_A = importance.weights_A, importance.kept_A, bin_tensors.advantages_A
        lower, upper = clip_bounds(self.algo.clip_low, self.algo.clip_high)
        first_A = bin_tensors.number_A == 0  # a row's first token lies on one context-parallel rank
        return {
            "chosen": chosen_A,
            "weight": weights_A,
            "weight_squared": weights_A.square(),
            "truncated": kept_A & (chosen_A > self.algo.importance.cap),
            "low": kept_A & (advantages_A < 0) & (weights_A < lower),
            "high": kept_A & (advantages_A > 0) & (weights_A > upper),
            "masked": ~kept_A,
            "rows": first_A,
            "masked_rows": first_A & ~importance.row_kept_A,
        }

    def finish(self) -> Mismatch:
        """Add up over all ranks."""
        sums, (largest_ratio, largest_chosen) = add_up(self.sums, self.largest)
        total = dict(zip(SUMS, sums))
        of_role = {
            name: dict(zip(Role, sums[len(SUMS) + number :: len(SUMS_OF_ROLE)]))
            for number, name in enumerate(SUMS_OF_ROLE)
        }
        count = max(1.0, sum(of_role["tokens"].values()))
        return Mismatch(
            ratio_mean=total["ratio"] / count,
            ratio_max=largest_ratio,
            k1=total["k1"] / count,
            k3=sum(of_role["k3"].values()) / count,
            k3_of_role=_mean_of_role(of_role, "k3"),
            correction=_correction(total, of_role, largest_chosen) if self.algo.weighs_importance else None,
        )


def _correction(total: dict[str, float], of_role: dict[str, dict[Role, float]], largest: float) -> Correction:
    count = max(1.0, sum(of_role["tokens"].values()))
    squares = total["weight_squared"]
    return Correction(
        ratio_mean=total["chosen"] / count,
        ratio_max=largest,
        weight_mean=total["weight"] / count,
        effective_share=total["weight"] ** 2 / squares / count if squares > 0 else 0.0,
        truncated_share=total["truncated"] / count,
        clipped_low_share=total["low"] / count,
        clipped_high_share=total["high"] / count,
        masked_tokens_share=sum(of_role["masked"].values()) / count,
        masked_rows_share=total["masked_rows"] / max(1.0, total["rows"]),
        masked_tokens_share_of_role=_mean_of_role(of_role, "masked"),
    )


def _mean_of_role(of_role: dict[str, dict[Role, float]], name: str) -> dict[Role, float]:
    """Over the role's tokens; roles without any are left out."""
    return {role: of_role[name][role] / tokens for role, tokens in of_role["tokens"].items() if tokens}


def add_up(sums: Tensor, largest: Tensor) -> tuple[list[float], list[float]]:
    """Sums and maxima of all ranks, on every rank; all call it.

    One tensor-parallel rank speaks for its group, and the last stage for the pipeline. Context-parallel ranks each have
    tokens of their own.
    """
    speaks = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    sums = (sums if speaks else torch.zeros_like(sums)).to(platform.device())
    largest = largest.to(platform.device(), copy=True)
    dist.all_reduce(sums)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return sums.tolist(), largest.tolist()
