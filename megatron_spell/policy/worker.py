"""The policy on one trainer rank: load, score, update, save. Every rank calls the same methods in the same order."""

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from megatron_spell.policy import platform  # isort: skip  (quiets Megatron's import)

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch import Tensor

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.hf_files import read_segments
from megatron_spell.bridge.inventory import checkpoint_shapes, trainer_inventory
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import PolicySection
from megatron_spell.config.schema import AlgoSection, TrustSection
from megatron_spell.policy import checkpoint, step
from megatron_spell.policy.megatron_config import DTYPES
from megatron_spell.policy.model import build_model, local_parameters
from megatron_spell.policy.optimizer import build_optimizer, build_schedule, learning_rate, wrap_model
from megatron_spell.policy.optimizer_state import (
    FIRST_MOMENT,
    SECOND_MOMENT,
    WEIGHT,
    blank_state,
    place_state,
    set_steps,
    whole_state,
)
from megatron_spell.policy.routing import Routing
from megatron_spell.policy.saving import CheckpointWriter, Part, PolicyState
from megatron_spell.policy.setup import PolicyError
from megatron_spell.policy.step import Measured, StepReport
from megatron_spell.types.batches import PackedBatch

STATE_OF_FOLDER = {
    checkpoint.MAIN_WEIGHTS: WEIGHT,
    checkpoint.FIRST_MOMENT: FIRST_MOMENT,
    checkpoint.SECOND_MOMENT: SECOND_MOMENT,
}


class TrustError(PolicyError):
    """The engine's log-probs are not this policy's; no optimizer step was taken."""


class MegatronPolicy:
    """The trained model. Make it after `setup.initialise`, then `load_hf` or `load`: weights start uninitialised.

    Raises PolicyError when the model does not divide over the mesh or a setting is not supported.
    """

    def __init__(
        self,
        shape: ModelShape,
        policy: PolicySection,
        *,
        temperature: float,
        algo: AlgoSection,
        trust: TrustSection,
        seed: int,
    ) -> None:
        self.shape, self.mesh = shape, policy.mesh.mesh()
        self.policy, self.algo, self.trust = policy, algo, trust
        platform.install()  # Megatron's modules are all imported by now
        model_parallel_cuda_manual_seed(seed)
        self.chunks = build_model(shape, policy, temperature)
        self.routing = Routing(self.chunks, shape, policy.moe)
        self.parameters = local_parameters(self.chunks, self.mesh)
        self.ddp = wrap_model(self.chunks, policy)
        self.optimizer = build_optimizer(self.ddp, policy)
        self.schedule = build_schedule(self.optimizer, policy.optimizer)
        self.skipped = self.skipped_in_a_row = 0  # updates whose gradient was not finite
        self._companions: Path | None = None  # the folder whose config and tokenizer go along with the weights

    @property
    def num_updates(self) -> int:
        """Optimizer steps taken so far, skipped updates left out: where schedule and AdamW's bias correction stand."""
        return self.schedule.num_steps

    def inventory(self) -> Inventory:
        """Where the tensors of `local_tensors` lie in Hugging Face coordinates."""
        return trainer_inventory(self.shape, self.mesh, dist.get_rank())

    def local_tensors(self) -> dict[str, Tensor]:
        """This rank's parameters by local name; the live tensors, not copies."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def load_hf(self, folder: Path) -> None:
        """Read this rank's boxes of the weights in a Hugging Face folder. Optimizer state is not touched."""
        self._read(folder, self.local_tensors())
        self.optimizer.reload_model_params()
        self._companions = folder

    def update(self, batch: PackedBatch) -> StepReport:
        """One optimizer step on the batch; every rank gets the whole batch and takes its bins.

        A gradient that is not finite skips the update on all ranks: weights, moments and schedule stay as they are.
        Raises on all ranks, with weights and optimizer state unchanged: TrustError when the engine's log-probs are
        further from the policy's than `trust` allows, PolicyError when `max_skipped_in_a_row` updates were skipped or
        bins do not divide over the mesh.
        """
        _check_bins(batch, self.policy.bin_multiple)
        self.routing.begin(batch)
        self.routing.settle_losses(look=lambda: step.token_log_probs(self.ddp, batch))
        measured = step.accumulate_gradients(self.ddp, batch, self.algo)
        grad_norm, is_finite = self._grad_norm()
        if is_finite:
            self._check_trust(measured)
            self.schedule.step(1)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self._count_skipped(is_finite, grad_norm)
        return StepReport(
            loss=measured.loss,
            loss_of_role=measured.loss_of_role,
            grad_norm=grad_norm,
            lr=learning_rate(self.optimizer),
            log_prob_mean=measured.log_prob_mean,
            log_prob_diff_mean=measured.log_prob_diff_mean,
            log_prob_diff_max=measured.log_prob_diff_max,
            entropy_mean=measured.entropy_mean,
            num_tokens=measured.num_tokens,
            bin_tokens=batch.num_bin_tokens,
            row_tokens=batch.num_row_tokens,
            num_bins=sum(len(bins) for bins in batch.bins_D_B),
            mismatch=measured.mismatch,
            skipped=self.skipped,
            skipped_in_a_row=self.skipped_in_a_row,
            routing=self.routing.metrics(),
        )

    def log_probs(self, batch: PackedBatch) -> list[np.ndarray]:
        """The policy's raw (temperature 1) log-probs of each row's response: float32 [A] per row, on every rank."""
        _check_bins(batch, self.policy.bin_multiple)
        starts = _row_starts(batch)
        flat = torch.zeros(int(starts[-1]), dtype=torch.float32, device=platform.device())
        self.routing.begin(batch)
        scored = step.token_log_probs(self.ddp, batch)
        if parallel_state.get_tensor_model_parallel_rank() == 0:
            for bin_tensors, scores in scored:
                real_A = bin_tensors.real_A
                starts_A = torch.from_numpy(starts).to(flat.device)[bin_tensors.row_A[real_A]]
                flat[starts_A + bin_tensors.number_A[real_A]] = scores.raw_log_probs_A[real_A]
        dist.all_reduce(flat)
        return np.split(flat.cpu().numpy(), starts[1:-1])

    def export_hf(self, folder: Path) -> None:
        """Write the weights as a new Hugging Face folder, with config and tokenizer of the folder they came from.

        All ranks call it. Raises FolderError on all of them when the folder cannot be written.
        """
        self._writer.write_folder(folder, self._weights(), self._companions)

    def save(self, folder: Path) -> None:
        """Write a checkpoint (see checkpoint.py) into `folder`, which is whole once this returned on all ranks.

        All ranks call it. Raises FolderError on all of them when the folder cannot be written.
        """
        self.write(self.live_state(), folder)

    def live_state(self) -> PolicyState:
        """What a checkpoint of this moment is made of, uncopied: to be written before anything else is done."""
        skipped = self.skipped, self.skipped_in_a_row
        record = checkpoint.state_record(self.num_updates, self.mesh, skipped)
        return PolicyState(self._parts(), record, self._companions)

    def snapshot(self) -> PolicyState:
        """The same, copied to host memory: `write` may run in another thread while the policy goes on.

        All ranks call it. The copies of all ranks together are one copy of weights, main weights and moments; where
        the optimizer is distributed one kind at a time is gathered whole for it, here and not later.
        """
        state = self.live_state()
        return replace(state, parts=[replace(part, tensors=self._writer.copies(part.tensors)) for part in state.parts])

    def write(self, state: PolicyState, folder: Path) -> None:
        """Write `state` into `folder`. All ranks call it, one at a time, on process groups that nothing else uses.

        Raises FolderError on all of them when the folder cannot be written, TransportError when a rank is lost.
        """
        self._writer.write(folder, state)

    def agree(self, fault: str | None) -> None:
        """Tell every rank what went wrong on rank 0 after `write`: FolderError on all of them, or nothing."""
        self._writer.agree(fault)

    def _parts(self) -> Iterator[Part]:
        yield self._weights()
        for name, key in STATE_OF_FOLDER.items():
            if key is not WEIGHT or DTYPES[self.policy.dtype] != torch.float32:
                yield Part(name, whole_state(self.optimizer, self.parameters, key), torch.float32)

    def _weights(self) -> Part:
        return Part(checkpoint.WEIGHTS, self.local_tensors(), DTYPES[self.policy.dtype])

    @functools.cached_property
    def _writer(self) -> CheckpointWriter:
        return CheckpointWriter(self.shape, self.mesh, self.policy.timeout_s)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of the same model, saved under any layout and dtype. Raises FolderError."""
        record = checkpoint.read_state(folder)
        for name, key in STATE_OF_FOLDER.items():
            whole = blank_state(self.optimizer, self.parameters, key)
            source = folder / name
            self._read(source if key is not WEIGHT or source.is_dir() else folder / checkpoint.WEIGHTS, whole)
            place_state(self.optimizer, self.parameters, key, whole)
            if key is WEIGHT:
                for local, tensor in self.local_tensors().items():
                    tensor.copy_(whole[local])
        set_steps(self.optimizer, self.parameters, record["num_updates"])
        self.schedule.num_steps = record["num_updates"]
        self.skipped, self.skipped_in_a_row = record.get("skipped_updates", (0, 0))
        self.schedule.step(0)
        checkpoint.restore_random_states(record, self.mesh)
        self._companions = folder / checkpoint.WEIGHTS

    def _read(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        read_segments(folder, self.inventory(), tensors, checkpoint_shapes(self.shape))

    def _check_trust(self, measured: Measured) -> None:
        """Log-probs of stale rows differ by right, so only their masks tell that an engine is altogether wrong."""
        largest, mean = measured.log_prob_diff_max, measured.log_prob_diff_mean
        figures = {"max_log_prob_diff": largest, "max_log_prob_diff_mean": mean} if not self.algo.max_staleness else {}
        figures["max_masked_share"] = measured.mismatch.masked_share
        for field, figure in figures.items():
            limit = getattr(self.trust, field)
            if not figure <= limit:
                self.optimizer.zero_grad()
                masked = f" ({figure:.1%} of the tokens masked)" if field == "max_masked_share" else ""
                raise TrustError(
                    f"engine and policy log-probs differ by {largest:.4g} at most and {mean:.4g} on average, beyond "
                    f"trust.{field} = {limit:g}{masked}; the engine probably holds"
                    " stale weights (check the last refresh)"
                )

    def _grad_norm(self) -> tuple[float, bool]:
        """The norm before clipping, and whether it is finite on every rank: all take the step or none does."""
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        num_broken = torch.tensor(float(not math.isfinite(grad_norm)), device=platform.device())
        dist.all_reduce(num_broken)
        return grad_norm, num_broken.item() == 0

    def _count_skipped(self, is_finite: bool, grad_norm: float) -> None:
        self.skipped_in_a_row = 0 if is_finite else self.skipped_in_a_row + 1
        self.skipped += not is_finite
        limit = self.policy.optimizer.max_skipped_in_a_row
        if self.skipped_in_a_row >= limit:
            raise PolicyError(
                f"the gradient norm of update {self.num_updates + 1} is {grad_norm}; {self.skipped_in_a_row} in a row"
                f" were skipped for such, which is policy.optimizer.max_skipped_in_a_row = {limit}; lower"
                " policy.optimizer.lr or look for broken rows in the batch"
            )


def _check_bins(batch: PackedBatch, multiple: int) -> None:
    for packed in (packed for bins in batch.bins_D_B for packed in bins):
        if packed.num_tokens % multiple:
            raise PolicyError(
                f"a bin of {packed.num_tokens} tokens does not divide over policy.mesh; pack with pad_multiple ="
                f" {multiple}"
            )


def _row_starts(batch: PackedBatch) -> np.ndarray:
    """Where each row's tokens begin in one array of all rows, and the end: [R + 1]."""
    counts = np.zeros(batch.num_rows, dtype=np.int64)
    for bins in batch.bins_D_B:
        for packed in bins:
            counts += np.bincount(packed.row_A[packed.row_A >= 0], minlength=batch.num_rows)
    return np.concatenate(([0], np.cumsum(counts)))
