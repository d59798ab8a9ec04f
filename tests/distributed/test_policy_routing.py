"""Replayed choices, router losses and expert loads in every layout against Hugging Face with forced routers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.policy_lab import difference, make_rows, write_tiny
from tests.distributed.processes import run_ranks
from tests.distributed.routing_lab import NUM_LAYERS, RoutedReference, with_other_choices
from tests.distributed.routing_rank import MOE

pytestmark = pytest.mark.slow

RANK = Path(__file__).with_name("routing_rank.py")
SP = {"sequence_parallel": True}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ["moe"]}
UNEVEN = {"mesh": {"pp": 2, "stage_layers": [1, 3]}}
TWO = {
    "ep allgather": {"mesh": {"dp": 2, "ep": 2}, "dispatcher": "allgather"},
    "tp sp": {"mesh": {"tp": 2}, **SP},
    "cp": {"mesh": {"cp": 2}},
    "pp, all computed again": {"mesh": {"pp": 2}, "megatron": {"transformer": FULL}},
    "pp uneven": UNEVEN,
    "pp vpp, experts computed again": {"mesh": {"pp": 2, "vpp": 2}, "megatron": {"transformer": SELECTIVE}},
}
FOUR = {"tp sp cp ep etp 1": {"mesh": {"tp": 2, "cp": 2, "ep": 2, "etp": 1}, **SP}}
FAULTY = {
    "tp sp, first tokens": {"mesh": {"tp": 2}, **SP, "fault": "first tokens"},
    "pp uneven, last stage first": {**UNEVEN, "fault": "last stage first"},
}


def run(folder: Path, layouts: dict, num_ranks: int) -> None:
    cases = [{"model": str(folder / "model"), "out": str(folder / name), **layout} for name, layout in layouts.items()]
    for case in cases:
        Path(case["out"]).mkdir()
    listing = folder / f"{num_ranks} ranks.json"
    listing.write_text(json.dumps(cases))
    run_ranks(RANK, num_ranks, str(listing), timeout_s=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("routing")
    write_tiny(folder / "model", "moe")
    return folder


@pytest.fixture(scope="module")
def truth(folder) -> dict:
    reference, rows = RoutedReference(folder / "model"), with_other_choices(make_rows(0))
    with torch.no_grad():
        log_probs = np.concatenate([reference.log_probs(row).numpy() for row in rows])
        balance, z = reference.router_losses(rows)
    reference.backward_with(rows, *MOE.values())
    return {"log_probs": log_probs, "balance": balance, "z": z, "gradients": reference.gradients()}


@pytest.fixture(scope="module")
def two(folder) -> Path:
    run(folder, TWO | FAULTY, 2)
    return folder


@pytest.fixture(scope="module")
def four(folder) -> Path:
    run(folder, FOUR, 4)
    return folder


def assert_as_forced(folder: Path, name: str, truth: dict) -> None:
    seen = json.loads((folder / name / "seen.json").read_text())
    assert seen["ranks agree"]
    np.testing.assert_allclose(seen["other"], truth["log_probs"], atol=1e-4, rtol=0)
    assert difference(folder / name / "other/gradients", truth["gradients"]) < 1e-5
    metrics = seen["other metrics"]
    assert metrics["moe/balance_loss"] == pytest.approx(truth["balance"].item() / NUM_LAYERS, rel=1e-4)
    assert metrics["moe/z_loss"] == pytest.approx(truth["z"].item() / NUM_LAYERS, rel=1e-4)
    assert 0.5 < metrics["moe/routing_differs"] < 1  # of 8 experts any 2


def assert_own_choices_change_no_bit(folder: Path, name: str) -> None:
    seen = json.loads((folder / name / "seen.json").read_text())
    assert seen["always"] == seen["never"]
    assert seen["always metrics"]["moe/routing_differs"] == 0
    without, with_own = (
        load_file(folder / name / mode / "gradients/model.safetensors") for mode in ("never", "always")
    )
    assert all(torch.equal(with_own[key], gradient) for key, gradient in without.items())


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_replay_and_balance_as_one_process_would(name, two, truth):
    assert_as_forced(two, name, truth)
    assert_own_choices_change_no_bit(two, name)


@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_replay_and_balance_as_one_process_would(name, four, truth):
    assert_as_forced(four, name, truth)
    assert_own_choices_change_no_bit(four, name)


@pytest.mark.parametrize("name", FAULTY)
def test_choices_of_others_would_be_seen(name, two, truth):
    """Planted: sequence-parallel ranks all take those of the bin's first tokens; stages number their layers wrongly."""
    seen = json.loads((two / name / "seen.json").read_text())
    assert np.abs(np.array(seen["other"]) - truth["log_probs"]).max() > 1e-2
    assert difference(two / name / "other/gradients", truth["gradients"]) > 1e-3
