import json
from pathlib import Path

import pytest

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.train.preflight import BYTES_PER_PARAMETER, MOMENT_BYTES_PER_PARAMETER, memory_needed_gib

MOE = {
    "model_type": "qwen3_moe",
    "vocab_size": 1024,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_theta": 1e4,
    "num_experts": 64,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 512,
}
EXPERTS = 8 * 64 * 3 * 512 * 512


@pytest.fixture
def needed(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(MOE))

    def of(asynchronous: bool = True, **policy) -> float:
        saves = {"asynchronous": asynchronous}
        place = {"run_folder": tmp_path, "model": {"path": tmp_path}, "data": {"store": tmp_path / "store.h5"}}
        return (
            memory_needed_gib(RunConfig.model_validate({"name": "t", **place, "policy": policy, "checkpoint": saves}))
            * 2**30
        )

    return of


def test_spread_experts_are_counted_once_for_each_replica(needed):
    """Of four ranks, four hold all experts without expert parallelism, two a half each with ep = 2."""
    saved = needed(mesh={"dp": 4}) - needed(mesh={"dp": 4, "ep": 2})
    assert saved == pytest.approx(2 * EXPERTS * (BYTES_PER_PARAMETER + MOMENT_BYTES_PER_PARAMETER))


def test_split_moments_are_counted_once(needed):
    whole, split = (needed(mesh={"dp": 4, "ep": 4}, distributed_optimizer=d) for d in (False, True))
    dense = (whole - split) / MOMENT_BYTES_PER_PARAMETER / 3  # three of four copies; experts have one anyway
    assert 0 < dense < EXPERTS / 10


@pytest.mark.parametrize(("dtype", "num_bytes"), [("float32", 12), ("bfloat16", 14)])
def test_a_snapshot_takes_one_copy_of_the_state_over_all_ranks(needed, tmp_path, dtype, num_bytes):
    layout = {"mesh": {"dp": 4, "ep": 2}, "dtype": dtype}
    snapshot = needed(**layout) - needed(asynchronous=False, **layout)
    assert snapshot == pytest.approx(num_bytes * ModelShape.load(tmp_path).num_parameters)
