"""Megatron's settings for a policy: from a model's shape and the mesh to a TransformerConfig."""

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import PolicySection
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy.backends import Backend
from megatron_spell.policy.native_options import with_options
from megatron_spell.policy.rope import attention_scale

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def transformer_config(shape: ModelShape, policy: PolicySection, backend: Backend) -> TransformerConfig:
    """Megatron's settings for a model of `shape`. Raises PolicyError when Megatron refuses the run's own options."""
    mesh, dtype = policy.mesh.mesh(), DTYPES[policy.dtype]
    return with_options(
        TransformerConfig,
        policy.megatron.transformer,
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
        sequence_parallel=policy.sequence_parallel,
        pipeline_model_parallel_size=mesh.pp,
        virtual_pipeline_model_parallel_size=mesh.vpp if mesh.vpp > 1 else None,
        pipeline_model_parallel_layout=_uneven_stages(shape, mesh),
        context_parallel_size=mesh.cp,
        init_method=leave_uninitialised,
        output_layer_init_method=leave_uninitialised,
        embedding_init_method=leave_uninitialised,
        cuda_graph_scope=[],  # Megatron's own default warns
        **_schedule_settings(policy),
        **_experts(shape, policy, backend),
        **backend.settings,
    )


def leave_uninitialised(weight: Tensor) -> Tensor:
    """Weights come from a file, so nothing is drawn.

    `perform_initialization=False` would draw nothing either, but also leave out the marks that tell tensor-parallel
    pieces from copies: the gradient norm would then miss the pieces of every rank but the first.
    """
    return weight


def _uneven_stages(shape: ModelShape, mesh: Mesh) -> list[list[str]] | None:
    """What stands in each stretch of the layers, in Megatron's words; None where the split is even.

    Megatron's other options (`num_layers_in_first_pipeline_stage` and its like) know equal middle stages and equal
    chunks only. From this one it takes the numbers of layers and their offsets, and with them the routers' layer
    numbers, for any split.
    """
    if mesh.stage_layers is None:
        return None
    layout = [["decoder"] * size for size in mesh.stretches(shape.num_layers)]
    layout[0].insert(0, "embedding")
    layout[-1].append("loss")
    return layout


def _experts(shape: ModelShape, policy: PolicySection, backend: Backend) -> dict[str, object]:
    if shape.experts is None:
        return {}
    return {
        "num_moe_experts": shape.experts.count,
        "moe_router_topk": shape.experts.per_token,
        "moe_ffn_hidden_size": shape.experts.ffn_size,
        # The softmax over the chosen experts' scores is the softmax over all, made to add up to one.
        "moe_router_pre_softmax": not shape.experts.normalised,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_grouped_gemm": backend.grouped_experts,
        "expert_model_parallel_size": policy.mesh.ep,
        "expert_tensor_parallel_size": policy.mesh.mesh().expert_tp,
    }


def _schedule_settings(policy: PolicySection) -> dict[str, object]:
    return {
        # Gradients are sums: the weights of the tokens were settled over the whole batch.
        "calculate_per_token_loss": True,
        # Bins differ in length, which pipeline stages tell each other; Megatron offers that with this dispatcher only.
        "variable_seq_lengths": policy.moe.dispatcher == "alltoall",
        "moe_token_dispatcher_type": policy.moe.dispatcher,
        # Two interleaved stages are each other's neighbours on both sides: in one batch of sends and receives an
        # activation would be taken for a gradient (megatron-core 0.16, `_batched_p2p_ops`).
        "overlap_p2p_comm": policy.mesh.vpp > 1,
        "batch_p2p_comm": policy.mesh.vpp == 1,
        # gloo may still be sending a stage's output when it would be freed.
        "deallocate_pipeline_outputs": False,
    }
