"""The layers that a policy is made of: Megatron's own or Transformer Engine's, with our core attention put in."""

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_mlp_module_spec_for_backend
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.policy.attention import PrefixCoreAttention
from megatron_spell.policy.backends import Backend
from megatron_spell.policy.router import PolicyRouter


class RMSNorm(torch.nn.Module):
    """The local norm: may stand under sequence parallelism, which Megatron's torch fallback refuses."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Tells Megatron to sum this gradient over the tensor-parallel ranks, each of which sees its own tokens.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def layer_spec(shape: ModelShape, backend: Backend) -> ModuleSpec:
    """One transformer layer; parameters are named alike whatever the backend, grouped experts aside."""
    num_experts = shape.experts.count if shape.experts else None
    spec = get_gpt_layer_local_spec(num_experts, qk_layernorm=shape.qk_norm, normalization="RMSNorm")
    layer, modules, norm = spec.submodules, backend.modules(), backend.norm(RMSNorm)
    layer.input_layernorm = layer.pre_mlp_layernorm = norm
    layer.mlp = get_mlp_module_spec_for_backend(modules, num_experts, moe_grouped_gemm=backend.grouped_experts)
    if shape.experts:
        layer.mlp.submodules.router = PolicyRouter
    attention = layer.self_attention.submodules
    attention.linear_qkv, attention.linear_proj = modules.column_parallel_linear(), modules.row_parallel_linear()
    if shape.qk_norm:
        attention.q_layernorm = attention.k_layernorm = norm
    attention.core_attention = PrefixCoreAttention
    return spec


def block_spec(shape: ModelShape, num_layers: int, backend: Backend) -> TransformerBlockSubmodules:
    """A pipeline stage's layers, and the norm after the last."""
    return TransformerBlockSubmodules([layer_spec(shape, backend)] * num_layers, layer_norm=backend.norm(RMSNorm))
