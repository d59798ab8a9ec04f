"""Activations recomputed on several ranks, whose collectives then run a second time, against plain torch."""

import pytest

from tests.distributed.layout_lab import Lab, assert_trained_like_plain_torch, plain_torch
from tests.distributed.policy_lab import write_tiny

pytestmark = pytest.mark.slow

SP = {"sequence_parallel": True}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "layernorm"]}
# Megatron stores a tensor-parallel rank's share of what a layer got, and gathers it again.
SHARED_OUT = FULL | {"distribute_saved_activations": True}
CASES = {
    "dense-tp sp full": ({"tp": 2}, FULL, SP),
    "dense-tp shared out": ({"tp": 2}, SHARED_OUT, {}),
    "dense-cp selective": ({"cp": 2}, SELECTIVE, {}),
    "dense-pp full": ({"pp": 2}, FULL, {}),
    "moe-ep full": ({"dp": 2, "ep": 2}, FULL, {}),
    "moe-ep selective": ({"dp": 2, "ep": 2}, SELECTIVE | {"recompute_modules": ["moe", "core_attn"]}, {}),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    folder = tmp_path_factory.mktemp("recompute")
    models = {"dense": write_tiny(folder / "dense", "qwen3"), "moe": write_tiny(folder / "moe", "moe")}
    lab = Lab(folder, {name: plain_torch(model) for name, model in models.items()})
    lab.run(
        [
            lab.case(name, mesh, megatron={"transformer": options}, **switches)
            for name, (mesh, options, switches) in CASES.items()
        ]
    )
    return lab


@pytest.mark.parametrize("name", CASES)
def test_recomputing_changes_nothing(lab, name):
    assert_trained_like_plain_torch(lab, name)
