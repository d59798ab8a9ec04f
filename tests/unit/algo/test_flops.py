"""Counted FLOPs against torch's own counter over a real model."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_spell.algo.flops import ForwardFlops, attended_pairs
from megatron_spell.algo.packing import pack
from megatron_spell.config.model_shape import ModelShape
from tests.unit.algo.made_rows import make_row

CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
MIXTURE = {"model_type": "qwen3_moe"}


def test_a_token_a_pair_and_a_trained_token_cost_what_torch_counts():
    """Eager attention computes every pair of a row's tokens, the head every token."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**CONFIG, attn_implementation="eager")
    model, num_tokens = AutoModelForCausalLM.from_config(config), 7
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(num_tokens)[None])
    flops = ForwardFlops.of(ModelShape.from_json(CONFIG))
    counted = num_tokens * (flops.per_token + flops.per_trained_token) + num_tokens**2 * flops.per_pair
    assert counter.get_total_flops() == counted


def test_pairs_are_those_of_the_mask():
    """Prompt of 3, answers of 2 and 4 in the bin, padding of 1: 6 + (2 * 3 + 3) + (4 * 3 + 10) + 1."""
    segments = np.array([[0, 3, 0, 3], [0, 3, 3, 5], [0, 3, 5, 9], [9, 10, 9, 10]])
    assert attended_pairs(segments) == 38


def test_a_step_is_three_times_its_forward_pass():
    flops = ForwardFlops(per_token=1000, per_pair=10, per_trained_token=100)
    assert flops.attention_tokens == 100
    ((packed,),) = pack([make_row([1, 2, 3], [4, 5])] * 2, np.ones(2), num_dp=1, max_bin_tokens=99).bins_D_B
    assert flops.of_step([packed, packed]) == 3 * 2 * (5 * 1000 + (6 + 4 + 4) * 10 + 4 * 100)


def test_a_token_goes_through_its_own_experts_and_the_router():
    sizes = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    dense, mixture = (ForwardFlops.of(ModelShape.from_json(CONFIG | more)) for more in ({}, sizes | MIXTURE))
    assert mixture.per_token - dense.per_token == 2 * 3 * 32 * 8  # two experts of half the size, and a router
    assert mixture.per_pair == dense.per_pair


@pytest.mark.parametrize("hidden, ffn", [(4096, 12288), (2048, 6144)])
def test_attention_weighs_as_much_as_the_matrices_at_about_six_hidden_sizes(hidden, ffn):
    heads = {"hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": hidden // 128, "head_dim": 128}
    shape = ModelShape.from_json(CONFIG | heads | {"num_key_value_heads": hidden // 512})
    assert ForwardFlops.of(shape).attention_tokens == pytest.approx(6 * hidden, rel=0.1)
