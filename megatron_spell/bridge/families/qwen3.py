"""Dense Qwen3: as Llama, and norms on queries and keys (`Qwen3ForCausalLM`)."""

from megatron_spell.bridge.families import llama
from megatron_spell.bridge.families.entry import layer_entry
from megatron_spell.bridge.rules import whole

TABLE = (
    *llama.TABLE,
    layer_entry("self_attention.q_layernorm", whole, {"self_attn.q_norm": "H"}),
    layer_entry("self_attention.k_layernorm", whole, {"self_attn.k_norm": "H"}),
)
