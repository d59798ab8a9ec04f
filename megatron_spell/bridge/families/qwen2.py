"""Qwen2.5: as Llama, and biases on queries, keys and values (`Qwen2ForCausalLM`)."""

from megatron_spell.bridge.families import llama
from megatron_spell.bridge.families.entry import layer_entry
from megatron_spell.bridge.rules import qkv_groups, qkv_stacked

TABLE = (
    *llama.TABLE,
    layer_entry(
        "self_attention.linear_qkv",
        qkv_groups,
        {"self_attn.q_proj": "NH", "self_attn.k_proj": "KH", "self_attn.v_proj": "KH"},
        engine=("self_attn.qkv_proj", qkv_stacked),
        kind="bias",
    ),
)
