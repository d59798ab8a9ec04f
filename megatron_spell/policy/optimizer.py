"""Megatron's gradient buffers, AdamW and learning-rate schedule around a model."""

from collections.abc import Sequence

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_spell.config.policy_sections import OptimizerSection, PolicySection
from megatron_spell.policy.model import PolicyModel
from megatron_spell.policy.native_options import with_options


def wrap_model(chunks: Sequence[PolicyModel], policy: PolicySection) -> list[DistributedDataParallel]:
    """Each chunk with gradient buffers, float32 unless the run says otherwise, summed over its data-parallel ranks.

    Experts spread over ranks have buffers of their own, summed over the ranks that hold the same ones.
    For the distributed optimizer each rank gets the sum of its stretch of the buffers only.
    """
    settings = with_options(
        DistributedDataParallelConfig,
        policy.megatron.ddp,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=False,
        use_distributed_optimizer=policy.distributed_optimizer,
    )
    return [DistributedDataParallel(chunk.config, settings, chunk) for chunk in chunks]


def build_optimizer(chunks: list[DistributedDataParallel], policy: PolicySection) -> MegatronOptimizer:
    """AdamW without weight decay on one-dimensional parameters (norms and biases)."""
    model, section = chunks[0], policy.optimizer
    config = with_options(
        OptimizerConfig,
        policy.megatron.optimizer,
        optimizer="adam",
        lr=section.lr,
        min_lr=section.min_lr,
        weight_decay=section.weight_decay,
        adam_beta1=section.beta1,
        adam_beta2=section.beta2,
        adam_eps=section.eps,
        clip_grad=section.clip_grad,
        bf16=model.config.bf16,
        params_dtype=model.config.params_dtype,
        use_distributed_optimizer=policy.distributed_optimizer,
        # Megatron's offloading steps bfloat16 weights through this path only (its own arguments demand both).
        use_precision_aware_optimizer=bool(policy.megatron.optimizer.get("optimizer_cpu_offload")),
    )
    return get_megatron_optimizer(config, chunks, use_gloo_process_groups=False)


def build_schedule(optimizer: MegatronOptimizer, section: OptimizerSection) -> OptimizerParamScheduler:
    """Linear warm-up, then a constant rate or its decay to `min_lr`.

    Stepped before each optimizer step, so that update 1 of a warm-up has a rate above zero and update `decay_steps` has
    `min_lr`. It also applies the weight-decay multipliers of the parameter groups; without it norms would decay.
    """
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=section.lr,
        min_lr=section.min_lr,
        lr_warmup_steps=section.warmup_steps,
        lr_decay_steps=section.decay_steps or section.warmup_steps + 1,
        lr_decay_style=section.schedule,
        start_wd=section.weight_decay,
        end_wd=section.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )


def learning_rate(optimizer: MegatronOptimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])
