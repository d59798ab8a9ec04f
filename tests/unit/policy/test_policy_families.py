"""Models of every family in the policy against Hugging Face, and planted faults that the comparison catches."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_spell.bridge.hf_files import FolderError
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.policy import model as policy_model
from tests.distributed.policy_lab import KINDS, Reference, make_batch, make_policy, make_rows, write_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("families")
    return {kind: write_tiny(base / kind, kind) for kind in KINDS}


def loaded(folder: Path, weights: Path | None = None):
    policy = make_policy(folder)
    policy.load_hf(weights or folder)
    return policy


def off_by(policy, folder: Path) -> float:
    """The largest difference of a log-prob to Hugging Face's."""
    found, reference = policy.log_probs(make_batch(make_rows(0))), Reference(folder)
    with torch.no_grad():
        return max(np.abs(f - reference.log_probs(row).numpy()).max() for f, row in zip(found, make_rows(0)))


def spoilt(folder: Path, copy: Path, spoil) -> Path:
    """A copy of the model with its tensors changed by `spoil`."""
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    copy.mkdir()
    save_file(tensors, copy / "model.safetensors")
    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_equal_hugging_face(alone, folders, kind):
    assert off_by(loaded(folders[kind]), folders[kind]) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_bit_for_bit(alone, folders, kind, tmp_path):
    loaded(folders[kind]).export_hf(tmp_path / "again")
    before, after = (load_file(f / "model.safetensors") for f in (folders[kind], tmp_path / "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert ModelShape.load(tmp_path / "again") == ModelShape.load(folders[kind])


@pytest.mark.parametrize("projection", "qkv")
def test_a_dropped_bias_would_be_seen(alone, folders, projection, tmp_path):
    """A key's bias adds the same to all logits of a query but for the rotation, so it shows least."""

    def spoil(tensors):
        tensors[f"model.layers.2.self_attn.{projection}_proj.bias"].zero_()

    copy = spoilt(folders["qwen2"], tmp_path / "spoilt", spoil)
    assert off_by(loaded(folders["qwen2"], copy), folders["qwen2"]) > 1e-3


@pytest.mark.parametrize(("kind", "what"), [("qwen2", "weight"), ("qwen2", "bias"), ("llama", "weight")])
def test_a_query_swapped_with_a_key_would_be_seen(alone, folders, kind, what, tmp_path):
    def spoil(tensors):
        q, k = (tensors[f"model.layers.0.self_attn.{x}_proj.{what}"] for x in "qk")
        rows = len(k)
        q[:rows], k[:] = k.clone(), q[:rows].clone()

    copy = spoilt(folders[kind], tmp_path / "spoilt", spoil)
    assert off_by(loaded(folders[kind], copy), folders[kind]) > 1e-2


@pytest.mark.parametrize("kind", ["qwen2", "llama", "moe"])
def test_a_swapped_head_would_be_seen(alone, folders, kind, tmp_path):
    """The first and the last query head, which attend to different keys; the output projection stays."""

    def spoil(tensors):
        q = tensors["model.layers.1.self_attn.q_proj.weight"]
        size = len(q) // 4
        q[:size], q[-size:] = q[-size:].clone(), q[:size].clone()

    copy = spoilt(folders[kind], tmp_path / "spoilt", spoil)
    assert off_by(loaded(folders[kind], copy), folders[kind]) > 1e-3


@pytest.mark.parametrize("pair", [("0.gate", "1.gate"), ("2.down", "5.down"), ("3.gate", "3.up")])
def test_swapped_projections_of_experts_would_be_seen(alone, folders, pair, tmp_path):
    def spoil(tensors):
        one, other = (tensors[f"model.layers.0.mlp.experts.{name}_proj.weight"] for name in pair)
        one[:], other[:] = other.clone(), one.clone()

    copy = spoilt(folders["moe"], tmp_path / "spoilt", spoil)
    assert off_by(loaded(folders["moe"], copy), folders["moe"]) > 1e-3


def test_weights_of_experts_that_do_not_add_up_to_one_would_be_seen(alone, folders, monkeypatch):
    shape = ModelShape.load(folders["moe"])
    wrong = replace(shape, experts=replace(shape.experts, normalised=False))
    monkeypatch.setattr(ModelShape, "load", lambda _: wrong)
    policy = loaded(folders["moe"])
    monkeypatch.undo()
    assert off_by(policy, folders["moe"]) > 1e-2


def test_experts_whose_weights_do_not_add_up_to_one_are_followed(alone, folders, tmp_path):
    """A model made that way: its own weights, and config.json says so."""
    copy = Path(shutil.copytree(folders["moe"], tmp_path / "plain"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"norm_topk_prob": False}))
    assert off_by(loaded(copy), copy) < 1e-4


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("llama", None),
        ("llama", {"factor": 2.0}),
        ("llama", {"high_freq_factor": 8.0}),
        ("llama", {"original_positions": 64}),
        ("yarn", None),
        ("yarn", {"factor": 2.0}),
        ("yarn", {"attention_factor": 1.0}),
        ("yarn", {"original_positions": 64}),
    ],
)
def test_a_wrong_rope_scaling_would_be_seen(alone, folders, kind, change, monkeypatch):
    shape = ModelShape.load(folders[kind])
    wrong = replace(shape, rope_scaling=change and replace(shape.rope_scaling, **change))
    monkeypatch.setattr(ModelShape, "load", lambda _: wrong)
    policy = loaded(folders[kind])
    monkeypatch.undo()
    assert off_by(policy, folders[kind]) > 1e-2


def test_yarn_is_followed_far_beyond_the_original_length(alone, folders, monkeypatch):
    """Logits of 900 positions, the original length being 24."""
    ids, row = np.random.default_rng(1).integers(0, 259, 900), make_rows(0)[0]
    row = replace(row, prompt_ids_T=ids[:4], response_ids_A=ids[4:], engine_log_probs_A=np.zeros(896, np.float32))
    seen, head = [], policy_model.PolicyModel._logits
    monkeypatch.setattr(policy_model.PolicyModel, "_logits", lambda m, h: seen.append(head(m, h)) or seen[-1])
    loaded(folders["yarn"]).log_probs(make_batch([row], max_bin_tokens=1000))
    with torch.no_grad():
        expected = Reference(folders["yarn"]).logits(row)
    torch.testing.assert_close(torch.cat(seen).detach(), expected, atol=1e-4, rtol=0)


def test_only_matrices_decay(alone, folders, tmp_path):
    policy = loaded(folders["qwen2"])
    decays = {id(p): g["wd_mult"] > 0 for g in policy.optimizer.param_groups for p in g["params"]}
    names = {name: decays[id(parameter)] for name, parameter in policy.parameters.items()}
    assert any(name.endswith("linear_qkv.bias") for name in names)
    assert names == {name: p.dim() > 1 for name, p in policy.parameters.items()}


def test_biases_that_decay_would_be_seen(alone, folders, tmp_path):
    policy, reference = loaded(folders["qwen2"]), Reference(folders["qwen2"])
    for group in policy.optimizer.param_groups:
        group["wd_mult"] = 1.0
    for seed in range(2):
        policy.update(make_batch(make_rows(seed)))
        reference.update(make_rows(seed))
    policy.export_hf(tmp_path / "weights")
    biases = {name: tensor for name, tensor in reference.tensors().items() if name.endswith("bias")}
    found = load_file(tmp_path / "weights" / "model.safetensors")
    assert max((found[name] - tensor).abs().max() for name, tensor in biases.items()) > 1e-5


def test_a_missing_bias_is_named(alone, folders, tmp_path):
    name = "model.layers.3.self_attn.v_proj.bias"
    copy = spoilt(folders["qwen2"], tmp_path / "spoilt", lambda tensors: tensors.pop(name))
    with pytest.raises(FolderError, match=f"lacks tensor {name}"):
        loaded(folders["qwen2"], copy)
