import json
from dataclasses import replace
from math import log

import pytest

from megatron_spell.config.model_shape import Experts, ModelShape, UnknownModel
from megatron_spell.config.rope import Llama3Scaling, YarnScaling


def write(tmp_path, text: str):
    (tmp_path / "config.json").write_text(text)
    return tmp_path


def test_the_older_rope_form_and_a_missing_head_dim_are_read(tmp_path):
    raw = {
        "model_type": "qwen3",
        "vocab_size": 100,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    }
    shape = ModelShape.load(write(tmp_path, json.dumps(raw)))
    assert (shape.head_dim, shape.rope_theta, shape.tied_embeddings) == (32, 1e6, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{", "cannot be read"), ('{"model_type": "qwen3"}', "lacks 'vocab_size'"), ("{}", "model_type None")],
)
def test_a_broken_config_is_one_line(tmp_path, text, expected):
    with pytest.raises(UnknownModel, match=expected):
        ModelShape.load(write(tmp_path, text))


BASE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "rope_theta": 1e6,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def read(model_type: str, **more) -> ModelShape:
    return ModelShape.from_json(BASE | {"model_type": model_type} | more)


@pytest.mark.parametrize(("model_type", "qkv_bias", "qk_norm"), [("llama", 0, 0), ("qwen2", 1, 0), ("qwen3", 0, 1)])
def test_what_a_family_adds_is_known(model_type, qkv_bias, qk_norm):
    shape = read(model_type)
    assert (shape.family, shape.qkv_bias, shape.qk_norm, shape.head_dim) == (model_type, qkv_bias, qk_norm, 16)


def test_a_window_that_is_not_used_is_no_matter():
    more = {"sliding_window": 4096, "use_sliding_window": False, "layer_types": ["full_attention"] * 2}
    assert read("qwen2", **more) == read("qwen2")


@pytest.mark.parametrize(
    ("model_type", "more", "expected"),
    [
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True}, "uses a sliding window"),
        ("llama", {"sliding_window": 64}, "uses a sliding window"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "has layer_types sliding_attention"),
        ("qwen2", {"head_dim": 32}, "has head_dim 32; of a qwen2"),
        ("llama", {"attention_bias": True}, "has attention_bias"),
        ("llama", {"mlp_bias": True}, "has mlp_bias"),
        ("qwen3", {"attention_bias": True}, "has attention_bias"),
        ("llama", {"hidden_act": "gelu"}, "has hidden_act 'gelu'"),
        ("llama", {"partial_rotary_factor": 0.5}, "has a partial_rotary_factor"),
        ("qwen3_moe", MOE | {"mlp_only_layers": [0]}, "has layers without experts"),
        ("qwen3_moe", MOE | {"decoder_sparse_step": 2}, "has layers without experts"),
        ("qwen3_moe", MOE | {"num_experts_per_tok": 9}, "sends a token to 9 of 8 experts"),
        ("qwen3_moe", {}, "lacks 'num_experts'"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope_type 'linear'; known are default"),
        ("llama", {"rope_scaling": LLAMA3 | {"factor": None}}, "has rope_type 'llama3' without factor"),
        ("qwen2", {"rope_scaling": YARN | {"attn_factor": 2}}, "'yarn' with the unknown key 'attn_factor'"),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "without original_max_position_embeddings"),
    ],
)
def test_what_is_not_modelled_is_refused_in_one_line(model_type, more, expected):
    with pytest.raises(UnknownModel, match=r"^config\.json ") as refusal:
        read(model_type, **more)
    assert expected in str(refusal.value) and "\n" not in str(refusal.value)


def test_rope_scaling_is_read_in_both_spellings():
    old = read("llama", rope_scaling=LLAMA3)
    assert old.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 128)
    assert read("llama", rope_parameters=LLAMA3 | {"rope_theta": 1e6}, rope_theta=None) == old
    assert read("qwen2", rope_scaling=YARN).rope_scaling == YarnScaling(4.0, 128, 0.1 * log(4) + 1, 32.0, 1.0, True)
    assert read("qwen2").rope_scaling is None


def tiny_config(model_type: str, **more):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.AutoConfig.for_model(model_type, **sizes, **heads, **more)


@pytest.mark.parametrize(
    ("model_type", "more"), [("llama", {"head_dim": 32}), ("qwen2", {}), ("qwen3", {}), ("qwen3_moe", MOE)]
)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_as_transformers_counts_them(model_type, more, tied):
    from transformers import AutoModelForCausalLM

    config = tiny_config(model_type, tie_word_embeddings=tied, **more)
    shape = ModelShape.from_json(json.loads(config.to_json_string()))
    assert shape.num_parameters == sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


# model_type, vocabulary, hidden, layers, heads, key-value heads, head size, feed-forward, tied, parameters
PUBLISHED = {
    "Qwen2.5-7B": ("qwen2", 152064, 3584, 28, 28, 4, 128, 18944, False, 7_615_616_512),
    "Qwen2.5-14B": ("qwen2", 152064, 5120, 48, 40, 8, 128, 13824, False, 14_770_033_664),
    "Qwen2.5-32B": ("qwen2", 152064, 5120, 64, 40, 8, 128, 27648, False, 32_763_876_352),
    "Llama-3.1-8B": ("llama", 128256, 4096, 32, 32, 8, 128, 14336, False, 8_030_261_248),
    "Qwen3-4B": ("qwen3", 151936, 2560, 36, 32, 8, 128, 9728, True, 4_022_468_096),
    "Qwen3-8B": ("qwen3", 151936, 4096, 36, 32, 8, 128, 12288, False, 8_190_735_360),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_number_of_parameters(name):
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    model_type, *sizes, head_dim, ffn, tied, expected = PUBLISHED[name]
    more = dict(zip(keys, sizes)) | {"head_dim": head_dim, "intermediate_size": ffn, "tie_word_embeddings": tied}
    assert read(model_type, **more).num_parameters == expected


def test_experts_are_read_in_both_spellings():
    older = read("qwen3_moe", **MOE)
    assert older.experts == Experts(count=8, per_token=2, ffn_size=48, normalised=False, aux_loss_coef=0.001)
    newer = {"num_local_experts" if key == "num_experts" else key: value for key, value in MOE.items()}
    assert read("qwen3_moe", **newer, norm_topk_prob=True).experts == replace(older.experts, normalised=True)
    assert older.num_expert_parameters == 2 * 8 * 3 * 64 * 48
    assert read("qwen3").experts is None and read("qwen3").num_expert_parameters == 0
