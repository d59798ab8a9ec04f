"""The upcycled base model: says what the dense one does, with experts that differ, the same every time."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_spell.config.load import load_config
from megatron_spell.config.model_shape import ModelShape

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("upcycling", EXAMPLES / "quickstart_moe/make_base_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.arange(40)[None] * 7).logits


def test_without_noise_it_is_the_dense_model_and_with_little_almost(script, tmp_path):
    script.upcycle(script.DENSE, tmp_path / "exact", 8, 2, 0.0, seed=0)
    script.upcycle(script.DENSE, tmp_path / "noisy", 8, 2, 0.01, seed=0)
    dense = logits(script.DENSE)
    assert (logits(tmp_path / "exact") - dense).abs().max() < 1e-4
    assert 1e-4 < (logits(tmp_path / "noisy") - dense).abs().max() < 0.5


def test_experts_differ_and_come_again_with_the_seed(script, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        script.upcycle(script.DENSE, tmp_path / name, 4, 2, 0.01, seed)
    one, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other
    tensors = load_file(tmp_path / "one/model.safetensors")
    first, second = (tensors[f"model.layers.2.mlp.experts.{expert}.up_proj.weight"] for expert in (0, 1))
    assert 0 < (first - second).std() < 0.05 * first.std()
    assert tensors["model.layers.2.mlp.gate.weight"].shape == (4, 128)


def test_the_folder_is_a_model_that_the_run_knows(script, tmp_path):
    script.upcycle(script.DENSE, tmp_path, 8, 2, 0.01, seed=0)
    shape = ModelShape.load(tmp_path)
    assert (shape.experts.count, shape.experts.per_token, shape.experts.normalised) == (8, 2, True)
    assert (tmp_path / "tokenizer.json").read_bytes() == (script.DENSE / "tokenizer.json").read_bytes()
    config = load_config(EXAMPLES / "quickstart_moe/run.yaml", [])
    assert config.policy.mesh.mesh().world_size == 2 and config.policy.mesh.ep == 2


def test_another_family_is_refused(script):
    with pytest.raises(SystemExit, match="type llama cannot be upcycled"):
        script.mixture_config({"model_type": "llama"}, 8, 2)
