"""The policy in every layout against Hugging Face and plain AdamW, rows run one by one; real gloo processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_lab import Reference, difference, make_rows, write_tiny_qwen3
from processes import run_ranks

pytestmark = pytest.mark.slow

SEEDS = [0, 1, 2, 3]
RANK = Path(__file__).with_name("policy_rank.py")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def tied(request):
    return request.param


@pytest.fixture(scope="module")
def model(tied, tmp_path_factory) -> Path:
    return write_tiny_qwen3(tmp_path_factory.mktemp("model"), tied)


@pytest.fixture(scope="module")
def truth(model) -> dict:
    """Log-probs before, gradient norms during and weights after an update on each seed's rows."""
    reference = Reference(model)
    with torch.no_grad():
        log_probs = [reference.log_probs(row).numpy() for row in make_rows(SEEDS[0])]
    norms = [reference.update(make_rows(seed)) for seed in SEEDS]
    return {"log_probs": log_probs, "grad_norms": norms, "tensors": reference.tensors()}


def run(out: Path, model: Path, do: str = "train", **case) -> dict:
    """One launch on `mesh`; what rank 0 saw."""
    num_ranks = int(np.prod(list(case["mesh"].values())))
    out.mkdir(exist_ok=True)
    run_ranks(RANK, num_ranks, json.dumps({"do": do, "model": str(model), "out": str(out), "seeds": SEEDS, **case}))
    return json.loads((out / "seen.json").read_text())


MESHES = [{"tp": 2}, {"pp": 2}, {"dp": 2}, {"tp": 2, "pp": 2}, {"tp": 2, "dp": 2}]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_any_layout_trains_like_one_process_with_adamw(mesh, model, tied, truth, tmp_path):
    if not tied and mesh in MESHES[2:]:
        pytest.skip("the tied model covers it; only the vocabulary's ends differ")
    seen = run(tmp_path, model, mesh=mesh)
    assert seen["reports_agree"]
    for found, expected in zip(seen["log_probs"], truth["log_probs"], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(seen["grad_norms"], truth["grad_norms"], rtol=1e-5)
    assert difference(tmp_path / "weights", truth["tensors"]) < 1e-6


@pytest.mark.parametrize("mesh", [{"tp": 2}, {"dp": 2}], ids=str)
def test_a_dropped_all_reduce_would_be_seen(mesh, model, tied, truth, tmp_path):
    """Planted: replicas (dp) and copies of the head norms (tp) keep their own gradients."""
    if tied:
        pytest.skip("one model is enough")
    run(tmp_path, model, mesh=mesh, fault="no gradient all-reduce")
    assert difference(tmp_path / "weights", truth["tensors"]) > 1e-5


@pytest.mark.parametrize("mesh", [{"tp": 2}, {"pp": 2}], ids=str)
def test_training_goes_on_in_another_layout(mesh, model, tied, truth, tmp_path):
    """Saved by one process after two updates; the next two equal an unbroken run's."""
    run(tmp_path / "first", model, mesh={"dp": 1}, seeds=SEEDS[:2], save=str(tmp_path / "checkpoint"))
    seen = run(tmp_path / "second", model, mesh=mesh, seeds=SEEDS[2:], load=str(tmp_path / "checkpoint"))
    np.testing.assert_allclose(seen["grad_norms"], truth["grad_norms"][2:], rtol=1e-5)
    assert difference(tmp_path / "second/weights", truth["tensors"]) < 1e-6


def test_a_bfloat16_run_goes_on_bit_for_bit(model, tied, tmp_path):
    """TP2 and PP1 saved and loaded: weights, float32 main weights and moments return exactly."""
    if tied:
        pytest.skip("one model is enough")
    case = {"mesh": {"tp": 2}, "dtype": "bfloat16"}
    whole = run(tmp_path / "whole", model, **case)
    run(tmp_path / "first", model, **case, seeds=SEEDS[:2], save=str(tmp_path / "checkpoint"))
    rest = run(tmp_path / "second", model, **case, seeds=SEEDS[2:], load=str(tmp_path / "checkpoint"))
    assert rest["grad_norms"] == whole["grad_norms"][2:]
    weights = [(tmp_path / run_name / "weights/model.safetensors").read_bytes() for run_name in ("whole", "second")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("mesh", [{"dp": 2}, {"pp": 2}], ids=str)
def test_every_rank_distrusts_a_wrong_engine_and_no_weight_moves(mesh, model, tied, tmp_path):
    if tied:
        pytest.skip("one model is enough")
    seen = run(tmp_path, model, do="distrust", mesh=mesh)
    assert seen["honest_diff"] < 1e-4
    assert seen["num_updates"] == 1
    assert len(set(seen["messages"])) == 1
    assert "trust.max_log_prob_diff = 0.5" in seen["messages"][0]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("before", "after")]
    assert weights[0] == weights[1]
