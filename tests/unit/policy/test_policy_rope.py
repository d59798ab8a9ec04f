"""Frequencies and attention scale against transformers' own rotary embedding modules."""

import json

import pytest
import torch

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.policy.rope import attention_scale, inverse_frequencies

QWEN25_100K = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA_31 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "default", "rope_theta": 5e6},
        LLAMA_31,
        LLAMA_31 | {"factor": 32.0},
        LLAMA_31 | {"low_freq_factor": 2.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 100},
        QWEN25_100K,
        QWEN25_100K | {"truncate": False},
        QWEN25_100K | {"beta_fast": 8, "beta_slow": 2, "attention_factor": 1.3},
        QWEN25_100K | {"mscale": 0.7, "mscale_all_dim": 1.4, "factor": 40.0},
        QWEN25_100K | {"mscale": 0.7, "factor": 1.0},
        QWEN25_100K | {"original_max_position_embeddings": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_frequencies_and_attention_factor_are_those_of_transformers(rope, head_dim):
    from transformers import LlamaConfig, Qwen2Config
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    kinds = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "num_key_value_heads": 2}
    for make_config, rotary in ((LlamaConfig, LlamaRotaryEmbedding), (Qwen2Config, Qwen2RotaryEmbedding)):
        config = make_config(**kinds, max_position_embeddings=131072, rope_parameters=dict(rope))
        shape = ModelShape.from_json(json.loads(config.to_json_string()))
        expected = rotary(config)
        torch.testing.assert_close(inverse_frequencies(shape), expected.inv_freq, rtol=1e-6, atol=0)
        assert attention_scale(shape) == pytest.approx(head_dim**-0.5 * expected.attention_scaling**2, rel=1e-6)
