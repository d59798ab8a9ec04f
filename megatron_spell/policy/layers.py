"""The layers that a policy is made of: Megatron's own, with our norm and our core attention put in."""

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import ModuleSpec, TransformerConfig
from torch import Tensor

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.policy.attention import PrefixCoreAttention


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm that may stand under sequence parallelism, which Megatron's torch fallback refuses."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Tells Megatron to sum this gradient over the tensor-parallel ranks, each of which sees its own tokens.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def layer_spec(shape: ModelShape) -> ModuleSpec:
    """One transformer layer; experts, where there are any, are modules of their own (Megatron's `SequentialMLP`)."""
    num_experts = shape.experts.count if shape.experts else None
    spec = get_gpt_layer_local_spec(num_experts, qk_layernorm=shape.qk_norm, normalization="RMSNorm")
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    attention = layer.self_attention.submodules
    if shape.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    attention.core_attention = PrefixCoreAttention
    return spec
