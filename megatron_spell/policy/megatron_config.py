"""Megatron's settings for a policy: from a model's shape and the mesh to a TransformerConfig."""

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy.rope import attention_scale


def transformer_config(
    shape: ModelShape, mesh: Mesh, dtype: torch.dtype, *, sequence_parallel: bool = False
) -> TransformerConfig:
    """Megatron's settings for a dense model of `shape`; fused CUDA kernels are off."""
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_size,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm,
        softmax_scale=attention_scale(shape),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=mesh.tp,
        sequence_parallel=sequence_parallel,
        pipeline_model_parallel_size=mesh.pp,
        context_parallel_size=mesh.cp,
        init_method=leave_uninitialised,
        output_layer_init_method=leave_uninitialised,
        embedding_init_method=leave_uninitialised,
        cuda_graph_scope=[],  # Megatron's own default warns
        **_schedule_settings(),
        **_unfused(),
    )


def leave_uninitialised(weight: Tensor) -> Tensor:
    """Weights come from a file, so nothing is drawn.

    `perform_initialization=False` would draw nothing either, but also leave out the marks that tell tensor-parallel
    pieces from copies: the gradient norm would then miss the pieces of every rank but the first.
    """
    return weight


def _schedule_settings() -> dict[str, object]:
    return {
        # Gradients are sums: the weights of the tokens were settled over the whole batch.
        "calculate_per_token_loss": True,
        # Bins differ in length; Megatron asks for this dispatcher with it, even of a dense model.
        "variable_seq_lengths": True,
        "moe_token_dispatcher_type": "alltoall",
        # gloo may still be sending a stage's output when it would be freed.
        "deallocate_pipeline_outputs": False,
    }


def _unfused() -> dict[str, bool]:
    return {
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "apply_rope_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
    }
