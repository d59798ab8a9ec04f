import json

import pytest

from megatron_spell.config.schema import RunConfig
from megatron_spell.train.checkpoints import CheckpointError
from megatron_spell.train.saved_state import STATE, SavedState, find_mismatch

QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "rope_theta": 1e4,
}


@pytest.fixture
def config(tmp_path):
    def config_(seed: int = 0, **model) -> RunConfig:
        folder = tmp_path / f"model{len(model)}"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(QWEN3 | model))
        return RunConfig.model_validate(
            {"name": "t", "run_folder": "r", "seed": seed, "model": {"path": folder}, "data": {"store": "s"}}
        )

    return config_


def test_state_comes_back(config, tmp_path):
    state = SavedState(3, {"memory": [1]}, {"next_draw": 7}, {"asked": []})
    state.save(tmp_path, config())
    assert SavedState.load(tmp_path) == state


def test_a_state_from_before_there_was_a_watch_is_read(config, tmp_path):
    SavedState(3, {}, {}, {"asked": []}).save(tmp_path, config())
    raw = json.loads((tmp_path / STATE).read_text())
    del raw["watch"]
    (tmp_path / STATE).write_text(json.dumps(raw))
    assert SavedState.load(tmp_path).watch == {}
    assert find_mismatch(tmp_path, config()) is None


def test_another_model_or_seed_is_told(config, tmp_path):
    SavedState(3, {}, {}).save(tmp_path, config())
    assert "of another model" in find_mismatch(tmp_path, config(vocab_size=65))
    assert "was made with seed 0, not 1" in find_mismatch(tmp_path, config(seed=1))


@pytest.mark.parametrize("text", [None, "{", '{"format": 99}'])
def test_a_state_that_cannot_be_read_is_one_line(config, tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot be read|has format 99"):
        SavedState.load(tmp_path)
    assert "\n" not in find_mismatch(tmp_path, config())
