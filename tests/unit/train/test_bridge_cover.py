"""The independent count finds what a faulty planner could do wrong."""

from dataclasses import replace

import pytest

from megatron_spell.bridge.boxes import Box
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places
from megatron_spell.bridge.inventory import checkpoint_shapes
from megatron_spell.bridge.planner import Plan, plan
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from megatron_spell.train.bridge_cover import cover_faults, covered_tensors
from tests.unit.bridge.made_weights import inventories, made_shape

SHAPE = made_shape(family="qwen3_moe", tied=False)
SOURCES = inventories(SHAPE, Mesh(tp=2, dp=2, ep=2, etp=2))
TARGETS = {4 + n: engine_inventory(SHAPE, place) for n, place in enumerate(engine_places(SHAPE, EngineMesh(tp=2)))}
MOVES = plan(SOURCES, TARGETS).moves
W2 = next(i for i, move in enumerate(MOVES) if move.dst_name == "model.layers.1.mlp.experts.routed_experts.w2_weight")


def faults(*moves) -> list[str]:
    return cover_faults(Plan(moves), SOURCES, TARGETS)


def with_move(number: int, **changes):
    return (*MOVES[:number], replace(MOVES[number], **changes), *MOVES[number + 1 :])


def test_a_whole_plan_covers_every_tensor():
    assert faults(*MOVES) == []
    assert covered_tensors(MOVES, SHAPE) == set(checkpoint_shapes(SHAPE))


def test_a_missing_move_is_named():
    (fault,) = faults(*MOVES[:W2], *MOVES[W2 + 1 :])
    assert fault.startswith("target rank 4: model.layers.1.mlp.experts.routed_experts.w2_weight: ")
    lost = MOVES[W2]
    gone = {lost.hf_name.replace("*", str(i)) for i in range(4)}
    assert covered_tensors([m for m in MOVES if m != lost], SHAPE) == set(checkpoint_shapes(SHAPE)) - gone


def test_a_doubled_move_is_named():
    found = faults(*MOVES, MOVES[W2])
    assert any("w2_weight" in fault and "bring the same elements" in fault for fault in found)


def test_a_neighbour_with_as_many_elements_is_not_enough():
    box = MOVES[W2].dst_box
    found = faults(*with_move(W2, dst_box=Box((box.start[0] + 1, *box.start[1:]), (box.stop[0] + 1, *box.stop[1:]))))
    assert any(
        "w2_weight" in fault and "is not model.layers.1.mlp.experts.*.down_proj.weight" in fault for fault in found
    )


@pytest.mark.parametrize(
    ("a", "b"), [("self_attn.q_proj", "self_attn.k_proj"), ("experts.*.gate_proj", "experts.*.up_proj")]
)
def test_a_source_read_under_another_name_is_named(a, b):
    number = next(i for i, move in enumerate(MOVES) if f"1.{a}" in move.hf_name or f"mlp.{a}" in move.hf_name)
    (fault, *_) = faults(*with_move(number, hf_name=MOVES[number].hf_name.replace(a.split(".")[-1], b.split(".")[-1])))
    assert fault.startswith("source rank")
    assert b.split(".")[-1] in fault


def test_a_rank_that_does_not_hold_it_is_named():
    (fault,) = faults(*with_move(W2, src_rank=9))
    assert fault.startswith("source rank 9: decoder.layers.1.mlp.experts")
