"""Layouts of eight ranks drawn from all legal ones; test_policy_layouts.py and test_policy_experts.py name theirs."""

import random
from itertools import product
from math import prod

import pytest

from megatron_spell.config.layout_rules import layout_faults
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import PolicySection
from tests.distributed.layout_lab import Lab, assert_trained_like_plain_torch, plain_torch
from tests.distributed.policy_lab import write_tiny

pytestmark = pytest.mark.nightly

NUM_RANKS, NUM_DRAWN = 8, 8
KINDS = {"dense": "qwen2", "moe": "moe"}


def legal_layouts(shape: ModelShape) -> list[dict]:
    """Cases of every layout of eight ranks in which the model can be trained."""
    axes = ("tp", "pp", "cp", "dp")
    meshes = [dict(zip(axes, sizes)) for sizes in product((1, 2, 4, 8), repeat=4) if prod(sizes) == NUM_RANKS]
    switches = product(meshes, (1, 2), (None, [1, 3]), (1, 2, 4, 8), (None, 1, 2), (False, True), (False, True))
    found = []
    for mesh, vpp, stage_layers, ep, etp, sp, split_adam in switches:
        case = {
            "mesh": mesh | {"vpp": vpp, "stage_layers": stage_layers, "ep": ep, "etp": etp},
            "sequence_parallel": sp,
            "distributed_optimizer": split_adam,
        }
        if not list(layout_faults(shape, PolicySection(**case))):
            found.append(case)
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    folder = tmp_path_factory.mktemp("drawn")
    models = {name: write_tiny(folder / name, kind) for name, kind in KINDS.items()}
    return Lab(folder, {name: plain_torch(model) for name, model in models.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_layouts_train_like_plain_torch(lab, kind):
    layouts = legal_layouts(ModelShape.load(lab.folder / kind))
    assert len(layouts) > 40
    drawn = {f"{kind}-{number}": case for number, case in enumerate(random.Random(0).sample(layouts, NUM_DRAWN))}
    lab.run([lab.case(name, **case) for name, case in drawn.items()])
    for name, case in drawn.items():
        print(name, case)  # shown when the comparison below fails
        assert_trained_like_plain_torch(lab, name)
