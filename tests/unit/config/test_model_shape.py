import json

import pytest

from megatron_spell.config.model_shape import ModelShape, UnknownModel


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


def test_parameters_are_counted_as_transformers_counts_them():
    transformers = pytest.importorskip("transformers")
    for tied in (False, True):
        config = transformers.Qwen3Config(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=tied,
        )
        model = transformers.Qwen3ForCausalLM(config)
        shape = ModelShape.from_json(json.loads(config.to_json_string()))
        assert shape.num_parameters == sum(p.numel() for p in model.parameters())
