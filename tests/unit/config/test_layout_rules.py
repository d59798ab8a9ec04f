"""Layouts that cannot be, and layouts that are known to compute the wrong thing."""

import pytest

from megatron_spell.config.layout_rules import layout_faults
from megatron_spell.config.model_shape import Experts, ModelShape
from megatron_spell.config.policy_sections import PolicySection
from tests.unit.bridge.made_weights import made_shape

DENSE = made_shape(heads=8, groups=4, layers=8, ffn=24)
MOE = made_shape(heads=8, groups=4, layers=8, ffn=23, family="qwen3_moe")  # 4 experts of 8 columns
SP = {"sequence_parallel": True}


def uniform(num_layers: int, method: str = "uniform") -> dict:
    options = {"recompute_granularity": "full", "recompute_method": method, "recompute_num_layers": num_layers}
    return {"megatron": {"transformer": options}}


def faults(shape: ModelShape, switches: dict | None = None, **mesh) -> list[str]:
    return [str(fault) for fault in layout_faults(shape, PolicySection(mesh=mesh, **(switches or {})))]


@pytest.mark.parametrize(
    ("shape", "switches", "mesh"),
    [
        (DENSE, SP, {"tp": 4, "pp": 2, "vpp": 2, "cp": 2, "dp": 3}),
        (DENSE, {}, {"tp": 2, "etp": 1}),
        (MOE, {}, {"dp": 4, "ep": 4}),
        (MOE, SP, {"tp": 2}),
        (MOE, SP, {"tp": 2, "ep": 2, "etp": 1, "pp": 4, "vpp": 2}),
        (MOE, SP, {"tp": 2, "ep": 2, "dp": 2}),
        (MOE, {"moe": {"dispatcher": "allgather"}}, {"dp": 2, "ep": 2}),
        (DENSE, {}, {"pp": 3, "stage_layers": [2, 3, 3]}),
        (MOE, {}, {"pp": 2, "vpp": 2, "stage_layers": [1, 2, 4, 1]}),
        (DENSE, {}, {"stage_layers": [8]}),
        (DENSE, uniform(2), {"pp": 3, "stage_layers": [2, 4, 2]}),
        (DENSE, uniform(2, method="block"), {"pp": 2, "stage_layers": [3, 5]}),
    ],
)
def test_legal_layouts_have_no_fault(shape, switches, mesh):
    assert faults(shape, switches, **mesh) == []


@pytest.mark.parametrize(
    ("shape", "switches", "mesh", "expected"),
    [
        (DENSE, {}, {"tp": 8}, "policy.mesh.tp = 8: the model's 4 key-value heads do not divide by it; use a divisor"),
        (DENSE, SP, {}, "policy.sequence_parallel = True: there is one tensor-parallel rank"),
        (DENSE, {}, {"pp": 3}, "policy.mesh.pp = 3: the model's 8 layers do not divide by it"),
        (
            DENSE,
            {},
            {"vpp": 2},
            "policy.mesh.vpp = 2: there is one pipeline stage, and only several can",
        ),
        (DENSE, {}, {"pp": 2, "vpp": 3}, "policy.mesh.vpp = 3: the 4 layers of a pipeline stage do not divide by it"),
        (
            DENSE,
            {},
            {"pp": 2, "vpp": 2, "stage_layers": [4, 4]},
            "policy.mesh.stage_layers = [4, 4]: it has 2 numbers for 2 pipeline stages of 2 chunks; give 4",
        ),
        (
            DENSE,
            {},
            {"pp": 2, "stage_layers": [4, 5]},
            "policy.mesh.stage_layers = [4, 5]: it adds up to 9, and the model has 8 layers; give numbers that add up",
        ),
        (
            DENSE,
            {},
            {"pp": 2, "stage_layers": [8, 0]},
            "policy.mesh.stage_layers = [8, 0]: every stretch needs a layer; give numbers above 0",
        ),
        (
            DENSE,
            uniform(2),
            {"pp": 2, "stage_layers": [3, 5]},
            "policy.megatron.transformer.recompute_num_layers = 2: a pipeline stage holds 3 or 5 layers at a stretch",
        ),
        (
            DENSE,
            uniform(3),
            {},
            "policy.megatron.transformer.recompute_num_layers = 3: a pipeline stage holds 8 layers",
        ),
        (DENSE, {}, {"dp": 2, "ep": 2}, "policy.mesh.ep = 2: the model has no experts"),
        (DENSE, {}, {"tp": 2, "etp": 2}, "policy.mesh.etp = 2: the model has no experts"),
        (MOE, {}, {"dp": 3, "ep": 3}, "policy.mesh.ep = 3: the model's 4 experts do not divide by it"),
        (
            MOE,
            {},
            {"dp": 3, "ep": 1, "etp": 3},
            "policy.mesh.etp = 3: an expert's 8 feed-forward columns do not divide",
        ),
        (MOE, SP, {"tp": 2, "ep": 2}, "policy.mesh.ep = 2: with etp = 2 it does not divide the 2 ranks (tp x cp x dp)"),
        (
            MOE,
            {},
            {"tp": 2},
            "policy.sequence_parallel = False: with experts, tensor-parallel ranks must hold",
        ),
        (
            MOE,
            SP,
            {"tp": 2, "etp": 1},
            "policy.mesh.etp = 1: without expert parallelism, experts split otherwise than tp = 2 get wrong gradients",
        ),
        (
            MOE,
            {"moe": {"dispatcher": "allgather"}},
            {"dp": 2, "ep": 2, "pp": 2},
            "policy.moe.dispatcher = allgather: pipeline stages tell each other the lengths",
        ),
    ],
)
def test_a_layout_that_cannot_be_is_one_line_with_reason_and_way_out(shape, switches, mesh, expected):
    lines = faults(shape, switches, **mesh)
    assert lines[0].startswith(expected)
    assert all("; " in line and "\n" not in line for line in lines)


def test_the_way_out_is_a_size_that_fits():
    assert faults(DENSE, tp=8)[0].endswith("use a divisor of 4")
    assert faults(DENSE, pp=3)[0].endswith("use a divisor of 8 or say with policy.mesh.stage_layers how many each gets")
    assert Experts(4, 2, 8, True, 0.0).ffn_size == MOE.experts.ffn_size
