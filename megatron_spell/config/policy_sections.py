"""Settings of the Megatron policy: its mesh, experts, optimizer, and Megatron's own options."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from megatron_spell.config.section import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from megatron_spell.layout.mesh import Mesh


class MeshSection(Section):
    tp: PositiveInt = 1  # tensor parallel
    pp: PositiveInt = 1  # pipeline parallel
    dp: PositiveInt = 1  # data parallel
    cp: PositiveInt = 1  # context parallel: splits every bin
    ep: PositiveInt = 1  # expert parallel: folds over tp x cp x dp and adds no ranks
    etp: PositiveInt | None = None  # tensor parallel within an expert; None: as tp
    vpp: PositiveInt = 1  # chunks of layers on a pipeline stage, interleaved
    stage_layers: tuple[int, ...] | None = None  # layers of each of the pp x vpp stretches, in their order; None: even

    def mesh(self) -> Mesh:
        return Mesh(**self.model_dump())


ReplayMode = Literal["never", "compare", "always"]


class MoeSection(Section):
    """How a mixture of experts is trained; means nothing for a dense model."""

    dispatcher: Literal["alltoall", "allgather"] = "alltoall"  # how tokens travel to their experts
    routing_replay: ReplayMode = (
        "never"  # engines return the experts they chose; the policy counts differences, or always takes the same ones
    )
    balance_loss_coef: NonNegativeFloat = 0.0  # of the load-balancing loss; the model's own is for pretraining
    z_loss_coef: NonNegativeFloat = 0.0  # of the router z-loss


class OptimizerSection(Section):
    lr: PositiveFloat = 2e-6  # after the warm-up
    warmup_steps: NonNegativeInt = 0  # updates of linear warm-up, from 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # of the rate after the warm-up
    min_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # where linear and cosine end and stay
    decay_steps: PositiveInt | None = None  # updates until min_lr, warm-up included; linear and cosine need it
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01  # never on norms and biases
    beta1: Fraction = 0.9  # of AdamW
    beta2: Fraction = 0.999  # of AdamW
    eps: PositiveFloat = 1e-8  # of AdamW
    clip_grad: Annotated[float, Field(ge=0, allow_inf_nan=False)] = (
        1.0  # largest gradient norm; 0 switches clipping off
    )
    max_skipped_in_a_row: PositiveInt = 3  # updates skipped for a gradient that is not finite; at so many the run stops

    @field_validator("min_lr")
    @classmethod
    def _below_lr(cls, min_lr: float, known: ValidationInfo) -> float:
        if min_lr > (lr := known.data.get("lr", min_lr)):
            raise PydanticCustomError("rates", "is above policy.optimizer.lr = {lr}; lower it", {"lr": lr})
        return min_lr

    @field_validator("decay_steps")
    @classmethod
    def _fits_schedule(cls, decay_steps: int | None, known: ValidationInfo) -> int | None:
        schedule, warmup_steps = known.data.get("schedule"), known.data.get("warmup_steps", 0)
        if schedule == "constant" and decay_steps is not None:
            raise PydanticCustomError("schedule", "a constant rate does not decay; set schedule to linear or cosine")
        if schedule in ("linear", "cosine") and (decay_steps is None or decay_steps <= warmup_steps):
            why = "schedule = {schedule} needs more than warmup_steps = {warmup_steps} of them; give the run's steps"
            raise PydanticCustomError("schedule", why, {"schedule": schedule, "warmup_steps": warmup_steps})
        return decay_steps


class MegatronSection(Section):
    """Fields of megatron-core's own dataclasses, given to it as they stand (docs/megatron-options.md)."""

    transformer: dict[str, JsonValue] = {}  # of `TransformerConfig`, such as recompute_granularity
    ddp: dict[str, JsonValue] = {}  # of `DistributedDataParallelConfig`, such as grad_reduce_in_fp32
    optimizer: dict[str, JsonValue] = {}  # of `OptimizerConfig`, such as optimizer_cpu_offload


class PolicySection(Section):
    mesh: MeshSection = MeshSection()
    sequence_parallel: bool = False  # norms and residuals hold a tp-th of the tokens each; needs tp > 1
    distributed_optimizer: bool = False  # main weights and AdamW's moments are split over dp and cp ranks
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16"  # of the weights that compute; bfloat16 keeps float32 main weights
    )
    max_bin_tokens: PositiveInt = 32768  # longest packed sequence; a longer row gets a bin of its own
    share_prompts: bool = True  # a prompt stands once in a bin for all its responses; false only serves to compare
    threads_per_rank: NonNegativeInt = 0  # torch threads on a CPU; 0: cores / ranks on this machine
    timeout_s: PositiveFloat = 1800.0  # longest wait of one rank for another
    optimizer: OptimizerSection = OptimizerSection()
    moe: MoeSection = MoeSection()
    backend: Literal["auto", "local", "transformer_engine"] = (
        "auto"  # whose layers; auto: Transformer Engine's where it and a GPU are there, else Megatron's own
    )
    megatron: MegatronSection = MegatronSection()

    @property
    def bin_multiple(self) -> int:
        """Bins are padded to a multiple of this many tokens, so that every rank gets an equal share of each."""
        of_context = 2 * self.mesh.cp if self.mesh.cp > 1 else 1
        return of_context * (self.mesh.tp if self.sequence_parallel else 1)

    @property
    def num_bins_multiple(self) -> int:
        """A rank's bins come in multiples of this number: interleaved pipeline stages take them in groups of pp."""
        return self.mesh.pp if self.mesh.vpp > 1 else 1
