"""Megatron's gradient buffers, AdamW and learning-rate schedule around a model, and where its state lies."""

from collections.abc import Iterator

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from megatron_spell.config.schema import OptimizerSection
from megatron_spell.policy.model import PolicyModel

FIRST_MOMENT, SECOND_MOMENT = "exp_avg", "exp_avg_sq"


def wrap_model(model: PolicyModel) -> DistributedDataParallel:
    """The model with float32 gradient buffers that are summed over the data-parallel ranks."""
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, overlap_grad_reduce=False)
    return DistributedDataParallel(model.config, settings, model)


def build_optimizer(model: DistributedDataParallel, section: OptimizerSection) -> MegatronOptimizer:
    """AdamW without weight decay on one-dimensional parameters (norms and biases)."""
    config = OptimizerConfig(
        optimizer="adam",
        lr=section.lr,
        min_lr=section.lr,
        weight_decay=section.weight_decay,
        adam_beta1=section.beta1,
        adam_beta2=section.beta2,
        adam_eps=section.eps,
        clip_grad=section.clip_grad,
        bf16=model.config.bf16,
        params_dtype=model.config.params_dtype,
    )
    return get_megatron_optimizer(config, [model], use_gloo_process_groups=False)


def build_schedule(optimizer: MegatronOptimizer, section: OptimizerSection) -> OptimizerParamScheduler:
    """Linear warm-up to a constant rate. Stepped before each optimizer step, so that update 1 has a rate above zero.

    It is also what applies the weight-decay multipliers of the parameter groups; without it norms would decay.
    """
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=section.lr,
        min_lr=section.lr,
        lr_warmup_steps=section.warmup_steps,
        lr_decay_steps=section.warmup_steps + 1,
        lr_decay_style="constant",
        start_wd=section.weight_decay,
        end_wd=section.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )


def learning_rate(optimizer: MegatronOptimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


def main_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """The float32 weights that the optimizer steps, by local name; for float32 parameters these themselves."""
    return {name: getattr(parameter, "main_param", parameter).detach() for name, parameter in model.named_parameters()}


def adam_moments(optimizer: MegatronOptimizer, model: torch.nn.Module) -> dict[str, dict[str, Tensor]]:
    """{local name: {"exp_avg": ..., "exp_avg_sq": ..., "step": ...}}, made (as zeros) where no step was taken yet.

    These are the optimizer's own tensors: writing into them is loading.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        weight = getattr(parameter, "main_param", parameter)
        state = _state_of(optimizer, weight)
        if not state:
            state["step"] = torch.tensor(0.0)
            state[FIRST_MOMENT] = torch.zeros_like(weight.data)
            state[SECOND_MOMENT] = torch.zeros_like(weight.data)
        states[name] = state
    return states


def _state_of(optimizer: MegatronOptimizer, weight: Tensor) -> dict[str, Tensor]:
    for torch_optimizer in _torch_optimizers(optimizer):
        for group in torch_optimizer.param_groups:
            if any(weight is other for other in group["params"]):
                return torch_optimizer.state[weight]
    raise KeyError("a parameter belongs to no optimizer group")


def _torch_optimizers(optimizer: MegatronOptimizer) -> Iterator[torch.optim.Optimizer]:
    for member in getattr(optimizer, "chained_optimizers", [optimizer]):
        yield member.optimizer
