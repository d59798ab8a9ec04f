"""One pass over a batch's bins with Megatron's own schedules, and what it measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_spell.algo.importance import RowSums, importance_of
from megatron_spell.algo.losses import token_losses
from megatron_spell.config.schema import AlgoSection
from megatron_spell.policy.context import Share
from megatron_spell.policy.log_probs import TokenScores
from megatron_spell.policy.microbatches import BinTensors, bins_of
from megatron_spell.policy.mismatch import Mismatch, MismatchTally, add_up
from megatron_spell.types.batches import ROLE_INDEX, PackedBatch
from megatron_spell.types.play import Role

Chunks = Sequence[DistributedDataParallel]  # the model, or the chunks of an interleaved pipeline stage


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did; the same on every rank.

    `loss` is the decided loss over the whole batch and `loss_of_role` its shares. At ratio one the loss is -sum w * A
    whatever the model is: watch the gradient norm. `log_prob_diff_*` compare the engine's raw log-probs with the
    policy's, in nats per trained token; `entropy_mean` is in nats at temperature 1. `num_tokens` are the trained
    tokens, `bin_tokens` what was forwarded, `row_tokens` what rows run one by one would have forwarded. An update whose
    gradient is not finite is skipped: `skipped` counts those so far, `skipped_in_a_row` those up to this one.
    """

    loss: float
    loss_of_role: dict[Role, float]
    grad_norm: float
    lr: float
    log_prob_mean: float
    log_prob_diff_mean: float
    log_prob_diff_max: float
    entropy_mean: float
    num_tokens: int
    bin_tokens: int
    row_tokens: int
    num_bins: int
    mismatch: Mismatch
    skipped: int
    skipped_in_a_row: int
    routing: dict[str, float] = field(default_factory=dict)  # of a mixture of experts, see routing.py

    def metrics(self) -> dict[str, float]:
        """The figures by their names in metrics.jsonl (docs/running.md)."""
        return {
            "policy/loss": self.loss,
            **{f"{role}/loss": loss for role, loss in self.loss_of_role.items()},
            "policy/grad_norm": self.grad_norm,
            "policy/lr": self.lr,
            "policy/log_prob/mean": self.log_prob_mean,
            "policy/entropy/mean": self.entropy_mean,
            "mismatch/log_prob_diff/mean": self.log_prob_diff_mean,
            "mismatch/log_prob_diff/max": self.log_prob_diff_max,
            **self.mismatch.metrics(),
            "policy/skipped_updates": float(self.skipped),
            "policy/skipped_in_a_row": float(self.skipped_in_a_row),
            **self.routing,
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over every trained token of the batch."""

    loss: float
    loss_of_role: dict[Role, float]
    log_prob_mean: float
    log_prob_diff_mean: float
    log_prob_diff_max: float
    entropy_mean: float
    num_tokens: int
    mismatch: Mismatch


@dataclass(slots=True)
class Tally:
    """This rank's sums, on the last pipeline stage; float64, in the order of `finish`."""

    mismatch: MismatchTally
    sums: Tensor = field(default_factory=lambda: torch.zeros(5 + len(Role), dtype=torch.float64))
    largest_diff: float = 0.0

    @torch.no_grad()
    def add(self, bin_tensors: BinTensors, scores: TokenScores, loss: Tensor, loss_of_role: list[Tensor]) -> None:
        real_A = bin_tensors.real_A
        raw = scores.raw_log_probs_A[real_A].double()
        # A NaN on either side must count as a difference: it would slip through every comparison.
        diff = (raw - bin_tensors.engine_log_probs_A[real_A]).abs().nan_to_num(nan=torch.inf)
        totals = [loss, diff.sum(), raw.sum(), scores.entropy_A[real_A].sum(), real_A.sum(), *loss_of_role]
        self.sums += torch.stack([total.double() for total in totals]).cpu()
        self.largest_diff = max(self.largest_diff, diff.max().item() if diff.numel() else 0.0)

    def finish(self) -> Measured:
        """Add up over all ranks."""
        sums, (largest,) = add_up(self.sums, torch.tensor([self.largest_diff], dtype=torch.float64))
        loss, diff, log_prob, entropy, num_tokens, *of_role = sums
        count = max(1.0, num_tokens)
        return Measured(
            loss=loss,
            loss_of_role=dict(zip(Role, of_role)),
            log_prob_mean=log_prob / count,
            log_prob_diff_mean=diff / count,
            log_prob_diff_max=largest,
            entropy_mean=entropy / count,
            num_tokens=int(num_tokens),
            mismatch=self.mismatch.finish(),
        )


def accumulate_gradients(chunks: Chunks, batch: PackedBatch, algo: AlgoSection) -> Measured:
    """Forward and backward over the batch; the gradients, summed over bins and data-parallel ranks, are the model's."""
    tally = Tally(MismatchTally(algo))
    for chunk in chunks:
        chunk.config.finalize_model_grads_func = sum_gradients
        chunk.zero_grad_buffer()
    loss_of_bin = partial(_loss_of_bin, algo=algo, tally=tally, num_rows=batch.num_rows)
    _run_schedule(chunks, batch, loss_of_bin, forward_only=False)
    return tally.finish()


@torch.no_grad()
def token_log_probs(chunks: Chunks, batch: PackedBatch) -> list[tuple[BinTensors, TokenScores]]:
    """Score the batch without gradients; (bin, scores) of this rank's bins on the last stage, nothing elsewhere."""
    scored: list[tuple[BinTensors, TokenScores]] = []

    def keep(scores: TokenScores, bin_tensors: BinTensors) -> tuple[Tensor, Tensor, None]:
        scored.append((bin_tensors, scores))
        return scores.log_probs_A.sum(), torch.tensor(0, dtype=torch.int), None

    _run_schedule(chunks, batch, keep, forward_only=True)
    return scored


def sum_gradients(model: list, num_tokens: Tensor | None = None, **groups: object) -> None:
    """Megatron's reduction without its division by the number of tokens: the tokens' weights are settled already."""
    finalize_model_grads(model, None, **groups)


def _run_schedule(chunks: Chunks, batch: PackedBatch, loss_of_bin: Callable, forward_only: bool) -> None:
    def forward_step(bins: Iterator[BinTensors], chunk: DistributedDataParallel) -> tuple[object, Callable]:
        bin_tensors = next(bins)
        return chunk(bin_tensors), partial(loss_of_bin, bin_tensors=bin_tensors)

    dp_rank = parallel_state.get_data_parallel_rank()
    share = Share(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())
    # All-gathering tokens over ranks for their experts takes as many of each.
    equal_lengths = chunks[0].config.moe_token_dispatcher_type == "allgather"
    of_chunks = [bins_of(batch, dp_rank, share, equal_lengths=equal_lengths) for _ in chunks]
    interleaved = len(chunks) > 1
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=of_chunks if interleaved else of_chunks[0],
        model=list(chunks) if interleaved else chunks[0],
        num_microbatches=len(batch.bins_D_B[dp_rank]),
        seq_length=1,  # unused: stages exchange the length of every bin
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _loss_of_bin(
    scores: TokenScores, *, bin_tensors: BinTensors, algo: AlgoSection, tally: Tally, num_rows: int
) -> tuple[Tensor, Tensor, None]:
    """(loss, token count, nothing to store) as a schedule wants them; the loss is this bin's share of the batch's."""
    importance = None
    if algo.weighs_importance:
        row_sums = RowSums(bin_tensors.row_A, num_rows, sum_over_context_parallel_ranks)
        raw_A = scores.raw_log_probs_A
        importance = importance_of(raw_A, bin_tensors.engine_log_probs_A, row_sums, algo.importance)
    losses_A = token_losses(
        scores.log_probs_A,
        bin_tensors.advantages_A,
        bin_tensors.weights_A,
        importance,
        algo.clip_low,
        algo.clip_high,
    )
    of_role = [losses_A.detach()[bin_tensors.role_A == index].sum() for index in ROLE_INDEX.values()]
    loss = losses_A.sum()
    tally.add(bin_tensors, scores, loss.detach(), of_role)
    tally.mismatch.add(bin_tensors, scores, importance)
    return loss, torch.tensor(0, dtype=torch.int), None


def sum_over_context_parallel_ranks(sums: Tensor) -> Tensor:
    """The ranks that hold the other tokens of a bin; they call this once for every bin, in the same order."""
    if parallel_state.get_context_parallel_world_size() > 1:
        dist.all_reduce(sums, group=parallel_state.get_context_parallel_group())
    return sums
