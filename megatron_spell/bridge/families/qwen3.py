"""Dense Qwen3: parameters of megatron-core's GPTModel (local layer spec) and of `Qwen3ForCausalLM`."""

from megatron_spell.bridge.families.entry import Entry, Place
from megatron_spell.bridge.rules import qkv_groups, split_columns, split_rows, vocab_rows, whole

_LOCAL, _HF = "decoder.layers.{}.", "model.layers.{}."
_EMBEDDING = {"model.embed_tokens.weight": "W D"}


def _layer(local: str, rule, **hf: str) -> Entry:
    return Entry(Place.LAYER, f"{_LOCAL}{local}.weight", rule, {f"{_HF}{n}.weight": shape for n, shape in hf.items()})


TABLE = (
    Entry(Place.FIRST, "embedding.word_embeddings.weight", vocab_rows, _EMBEDDING),
    _layer("input_layernorm", whole, input_layernorm="D"),
    _layer(
        "self_attention.linear_qkv",
        qkv_groups,
        **{"self_attn.q_proj": "NH D", "self_attn.k_proj": "KH D", "self_attn.v_proj": "KH D"},
    ),
    _layer("self_attention.q_layernorm", whole, **{"self_attn.q_norm": "H"}),
    _layer("self_attention.k_layernorm", whole, **{"self_attn.k_norm": "H"}),
    _layer("self_attention.linear_proj", split_columns, **{"self_attn.o_proj": "D NH"}),
    _layer("pre_mlp_layernorm", whole, post_attention_layernorm="D"),
    _layer("mlp.linear_fc1", split_rows, **{"mlp.gate_proj": "F D", "mlp.up_proj": "F D"}),
    _layer("mlp.linear_fc2", split_columns, **{"mlp.down_proj": "D F"}),
    Entry(Place.LAST, "decoder.final_layernorm.weight", whole, {"model.norm.weight": "D"}),
    Entry(Place.UNTIED_LAST, "output_layer.weight", vocab_rows, {"lm_head.weight": "W D"}),
    Entry(Place.TIED_LAST, "output_layer.weight", vocab_rows, _EMBEDDING),
)
