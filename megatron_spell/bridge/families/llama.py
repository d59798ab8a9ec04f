"""Llama: parameters of megatron-core's GPTModel and of `LlamaForCausalLM` (Hugging Face, vLLM) without biases."""

from megatron_spell.bridge.families.entry import EMBEDDING, Place, entry, layer_entry
from megatron_spell.bridge.rules import qkv_groups, qkv_stacked, split_columns, split_rows, vocab_rows, whole

TABLE = (
    entry(Place.FIRST, "embedding.word_embeddings.weight", vocab_rows, EMBEDDING),
    layer_entry("input_layernorm", whole, {"input_layernorm": "D"}),
    layer_entry(
        "self_attention.linear_qkv",
        qkv_groups,
        {"self_attn.q_proj": "NH D", "self_attn.k_proj": "KH D", "self_attn.v_proj": "KH D"},
        engine=("self_attn.qkv_proj", qkv_stacked),
    ),
    layer_entry("self_attention.linear_proj", split_columns, {"self_attn.o_proj": "D NH"}),
    layer_entry("pre_mlp_layernorm", whole, {"post_attention_layernorm": "D"}),
    layer_entry(
        "mlp.linear_fc1",
        split_rows,
        {"mlp.gate_proj": "F D", "mlp.up_proj": "F D"},
        engine=("mlp.gate_up_proj", split_rows),
    ),
    layer_entry("mlp.linear_fc2", split_columns, {"mlp.down_proj": "D F"}),
    entry(Place.LAST, "decoder.final_layernorm.weight", whole, {"model.norm.weight": "D"}),
    entry(Place.UNTIED_LAST, "output_layer.weight", vocab_rows, {"lm_head.weight": "W D"}),
    entry(Place.TIED_LAST, "output_layer.weight", vocab_rows, EMBEDDING),
)
