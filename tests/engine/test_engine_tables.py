"""The engines' side of the families' tables against vLLM itself: its own loader builds models in gloo processes."""

import json
from pathlib import Path

import pytest

from tests.distributed.processes import run_ranks
from tests.engine.tiny_qwen3 import write_checkpoint, write_family

pytestmark = pytest.mark.slow

RANK = Path(__file__).with_name("layout_rank.py")
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1e4}
THREE_LAYERS = {"num_hidden_layers": 3}  # do not divide over two stages


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("models")
    made = {
        "qwen2": write_family(base / "qwen2", "qwen2", DEFAULT_ROPE, seed=0, **THREE_LAYERS),
        "qwen2 tied": write_family(base / "qwen2_tied", "qwen2", DEFAULT_ROPE, seed=1, tie_word_embeddings=True),
        "llama": write_family(base / "llama", "llama", DEFAULT_ROPE, seed=2, **THREE_LAYERS),
        "qwen3": write_checkpoint(base / "qwen3", seed=3, **THREE_LAYERS),
        "qwen3 tied": write_checkpoint(base / "qwen3_tied", seed=4, tied=True),
        "qwen3, one key-value head": write_checkpoint(base / "one_head", seed=5, num_key_value_heads=1),
        "qwen3_moe": write_checkpoint(base / "moe", seed=6, num_experts=5, **THREE_LAYERS),
        "qwen3_moe tied": write_checkpoint(base / "moe_tied", seed=7, num_experts=4, tied=True),
    }
    return {name: str(folder) for name, folder in made.items()}


def case(folder: str, tp: int = 1, pp: int = 1, dp: int = 1, ep: bool = False) -> dict:
    return {"folder": folder, "tp": tp, "pp": pp, "dp": dp, "ep": ep}


def test_every_parameter_of_two_workers_is_what_the_table_says(models):
    cases = [case(folder, tp=2) for folder in models.values()]
    cases += [case(folder, pp=2) for folder in models.values()]
    cases += [case(models[name], tp=2, ep=True) for name in ("qwen3_moe", "qwen3_moe tied")]
    cases += [case(models["qwen3_moe"], dp=2, ep=True), case(models["qwen3_moe"], dp=2)]
    run_ranks(RANK, 2, json.dumps(cases), timeout_s=400)


def test_every_parameter_of_four_workers_is_what_the_table_says(models):
    """Two key-value heads for four workers, stages of two, and replicas of two that share experts."""
    cases = [case(models["qwen2"], tp=4), case(models["qwen3_moe tied"], tp=4, ep=True)]
    cases += [case(models["llama"], tp=2, pp=2), case(models["qwen3_moe"], tp=2, pp=2, ep=True)]
    cases += [case(models["qwen3_moe tied"], tp=2, dp=2, ep=True), case(models["qwen3_moe"], tp=2, dp=2)]
    run_ranks(RANK, 4, json.dumps(cases), timeout_s=400)
