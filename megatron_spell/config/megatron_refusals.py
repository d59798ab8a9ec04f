"""Megatron options that a run must not set, why, and what to do instead. Patterns also cover later versions' fields."""

from typing import NamedTuple


class Refusal(NamedTuple):
    """`names` are patterns as of a shell."""

    names: tuple[str, ...]
    why: str
    way_out: str


def _instead(setting: str, *names: str) -> Refusal:
    return Refusal(names, f"{setting} says this", f"set {setting}")


def _leave(why: str, *names: str) -> Refusal:
    return Refusal(names, why, "leave it out")


_PRECISION = (
    _instead("policy.dtype", "params_dtype", "bf16", "pipeline_dtype", "fp32_residual_connection"),
    _instead("policy.dtype", "enable_autocast", "autocast_dtype"),
    _leave("float16 is not offered", "fp16", "*loss_scale*", "hysteresis"),
    _leave(
        "8-bit and 4-bit training is not offered: bins are not padded for it and checkpoints do not hold its scales",
        *(
            "fp8*",
            "fp4*",
            "*mxfp8*",
            "first_last_layers_bf16",
            "num_layers_at_*_in_bf16",
            "*_fp8_*",
            "*_fp8",
            "*_quantization",
        ),
    ),
    _leave("quantisation recipes are Python objects", "quant_recipe"),
)

TRANSFORMER = (
    *_PRECISION,
    _instead("policy.mesh.tp", "tensor_model_parallel_size"),
    _instead("policy.mesh.pp", "pipeline_model_parallel_size"),
    _instead("policy.mesh.vpp", "virtual_pipeline_model_parallel_size"),
    _instead(
        "policy.mesh.stage_layers",
        *("num_layers_in_*_pipeline_stage", "pipeline_model_parallel_layout", "account_for_*"),
    ),
    _instead("policy.mesh.cp", "context_parallel_size"),
    _instead("policy.mesh.ep", "expert_model_parallel_size"),
    _instead("policy.mesh.etp", "expert_tensor_parallel_size"),
    _instead("policy.sequence_parallel", "sequence_parallel"),
    _instead("policy.moe.dispatcher", "moe_token_dispatcher_type", "moe_enable_deepep", "moe_flex_*"),
    _instead("policy.backend", "transformer_impl", "moe_grouped_gemm", "moe_use_legacy_grouped_gemm"),
    _leave(
        "the layers are those that policy.backend chooses",
        *("use_kitchen*", "kitchen_*", "use_transformer_engine_op_fuser", "use_te_activation_func"),
        *("use_grouped_gemm_for_*", "fused_residual_rmsnorm", "moe_single_grouped_*", "use_inference_optimized_layers"),
    ),
    _leave(
        "the model's config.json decides this",
        *("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size", "kv_channels"),
        *("normalization", "layernorm_epsilon", "layernorm_zero_centered_gamma", "add_bias_linear", "add_qkv_bias"),
        *(
            "gated_linear_unit",
            "activation_func*",
            "glu_linear_offset",
            "*_glu_interleave_size",
            "use_fused_weighted_*",
        ),
        *("qk_*", "attention_output_gate", "rotary_interleaved", "mrope_section", "no_rope_freq", "softmax_*"),
        *("window_*", "multi_latent_attention", "mla_*", "experimental_attention_*", "dsa_*", "linear_*", "mtp_*"),
        *("mamba_*", "use_mamba_*", "is_hybrid_model", "heterogeneous_*", "hetereogenous_*", "use_mup", "mup_*"),
        *("apply_residual_connection_post_layernorm", "num_moe_experts", "moe_ffn_hidden_size", "moe_layer_freq"),
        *("moe_router_topk*", "moe_router_num_groups", "moe_router_group_topk", "moe_router_pre_softmax"),
        *("moe_router_score_function", "moe_router_enable_expert_bias", "moe_router_bias_update_rate"),
        *("moe_shared_expert_*", "moe_latent_size", "moe_apply_probs_on_input"),
    ),
    _leave(
        "how experts are routed and trained is the project's own (policy.moe)",
        *("moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_router_load_balancing_type", "moe_router_dtype"),
        *("moe_enable_routing_replay", "moe_router_force_*", "moe_router_quantile_*", "moe_input_jitter_eps"),
        *("moe_token_drop*", "moe_*capacity*", "moe_extended_tp"),
    ),
    _leave(
        "attention over shared prompts is the project's own (policy/attention.py)",
        *("attention_backend", "attention_softmax_in_fp32", "apply_query_key_layer_scaling", "masked_softmax_fusion"),
        *("cp_comm_type", "hierarchical_context_parallel_sizes", "hybrid_context_parallel", "log_max_attention_logit"),
        *("max_seqlen_per_dp_cp_rank", "flash_attention_version"),
    ),
    _leave(
        "log-probs are taken by policy/log_probs.py; Megatron's fused cross-entropy has gradients off by 8e-3",
        "cross_entropy_*",
    ),
    _leave("the engine that sampled drops nothing, and its log-probs are compared with these", "*_dropout"),
    _leave("the weights of the tokens are settled before bins are packed", "calculate_per_token_loss"),
    _leave(
        "the pipeline exchanges bins of unequal lengths, over gloo too, in the one way that is exact",
        *("variable_seq_lengths", "deallocate_pipeline_outputs", "*_p2p_*", "use_ring_exchange_p2p"),
        *("microbatch_group_size_per_vp_stage", "num_microbatches_with_partial_activation_checkpoints"),
    ),
    _leave(
        "the bridge relies on weights that lie as policy.mesh says", "*_num_weight_shards", "*gtp_weight_remat_size"
    ),
    _leave(
        "overlapping needs schedules and buffers that the policy does not set up",
        *("tp_comm_*", "overlap_moe_expert_parallel_comm", "overlap_dispatch_*", "ep_overlap_*"),
        *("delay_wgrad_compute", "defer_embedding_wgrad_compute", "wgrad_deferral_limit"),
    ),
    _leave("bins differ in length, and CUDA graphs want one shape", "*cuda_graph*", "use_te_rng_tracker"),
    _leave("weights come from a file, on the device at once", "*init_method_std", "*_initialization", "init_model_*"),
    _leave("concerns Megatron's own inference", "inference_*", "flash_decode", "mlp_chunks_for_*", "*_for_prefill"),
)

_FSDP = "Megatron's FSDP is not offered"
_OVERLAP = "gradients are reduced once, after the last bin, and weights gathered before the first"

DDP = (
    *_PRECISION,
    _instead("policy.distributed_optimizer", "use_distributed_optimizer"),
    _leave(_OVERLAP, "overlap_*", "align_param_gather", "delay_wgrad_compute"),
    _leave("gradients are sums, whose weights are settled before", "average_in_collective"),
    _leave(_FSDP, "*fsdp*", "*_sharding_strategy", "preserve_fp32_weights", "suggested_communication_unit_size"),
    _leave("checkpoints expect one instance", "num_distributed_optimizer_instances"),
    _leave("an update looks at its gradient norm itself", "check_for_nan_in_grad", "check_for_large_grads"),
)

_ADAMW = "the optimizer is AdamW, whose moments checkpoints hold"

OPTIMIZER = (
    *_PRECISION,
    _instead("policy.distributed_optimizer", "use_distributed_optimizer"),
    _instead("policy.optimizer.lr", "lr", "min_lr", "decoupled_lr", "decoupled_min_lr"),
    _instead("policy.optimizer.weight_decay", "weight_decay"),
    _instead("policy.optimizer.beta1", "adam_beta1"),
    _instead("policy.optimizer.beta2", "adam_beta2"),
    _instead("policy.optimizer.eps", "adam_eps"),
    _instead("policy.optimizer.clip_grad", "clip_grad"),
    _leave("norms are never decayed", "apply_wd_to_qk_layernorm"),
    _leave(_ADAMW, "optimizer", "decoupled_weight_decay", "sgd_*", "*muon*", "lion_*", "soap_*", "use_layer_wise_*"),
    _leave(
        "checkpoints hold main weights and moments in float32",
        *("use_precision_aware_optimizer", "store_param_remainders", "main_*_dtype", "exp_avg*_dtype"),
    ),
    _leave(_OVERLAP, "overlap_param_*"),
    _leave("the optimizer step is not captured", "optimizer_cuda_graph"),
)

REFUSALS = {"transformer": TRANSFORMER, "ddp": DDP, "optimizer": OPTIMIZER}

# What only a GPU has; on a CPU Megatron would fail in the middle of building the model.
GPU_ONLY = {
    "transformer": (
        *("gradient_accumulation_fusion", "apply_rope_fusion", "moe_permute_fusion", "moe_router_fusion"),
        *("persist_layer_norm", "cpu_offloading*", "fine_grained_activation_offloading", "symmetric_ar_type"),
    ),
    "ddp": ("nccl_ub", "disable_symmetric_registration", "pad_buckets_for_high_nccl_busbw"),
    "optimizer": ("*offload*", "pin_cpu_*"),
}
