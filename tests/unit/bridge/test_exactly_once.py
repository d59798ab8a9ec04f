"""Over drawn models and layouts every element of every target arrives exactly once, from a rank that owns it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.bridge.boxes import Box, Segment
from megatron_spell.bridge.engine_inventory import engine_places, engine_shapes
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes, local_shapes, trainer_shapes
from megatron_spell.bridge.planner import PlanError, plan
from megatron_spell.bridge.stacks import members
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.drawn_layouts import Case, cases, engine_inventories
from tests.unit.bridge.made_weights import inventories, made_shape


def targets_of(case: Case, kind: str):
    """(inventories, shapes of the parameters with padding) by rank; target ranks follow the trainers'."""
    first = case.trainer.world_size
    if kind == "engines":
        places = engine_places(case.shape, case.engine) * case.num_engines
        wanted = engine_inventories(case.shape, case.engine, first, case.num_engines)
        return wanted, {first + i: engine_shapes(case.shape, place) for i, place in enumerate(places)}
    if kind == "folder":
        return {first: checkpoint_inventory(case.shape)}, {first: checkpoint_shapes(case.shape)}
    other = case.other
    shapes = {first + r: trainer_shapes(case.shape, other, r) for r in range(other.world_size)}
    return {first + r: own for r, own in inventories(case.shape, other).items()}, shapes


def owned(inventory) -> dict[str, list]:
    """hf name -> segments, each tensor of a stack for itself, so that ownership is looked up without the planner."""
    found: dict[str, list] = {}
    for s in inventory:
        pairs = zip(members(s.hf_name, s.hf_box), members(s.local_name, s.local_box), strict=True)
        for (hf_name, hf_box), (name, box) in pairs:
            found.setdefault(hf_name, []).append((hf_box, name, box))
    return found


def assert_from_an_owner(move, owner: dict[str, list]) -> None:
    here = zip(members(move.hf_name, move.hf_box), members(move.src_name, move.src_box), strict=True)
    for (hf_name, hf_box), (name, box) in here:
        own = [(h, b) for h, n, b in owner[hf_name] if n == name]
        assert any(h.contains(hf_box) and hf_box.moved(h.start, b.start) == box for h, b in own), move


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(["engines", "folder", "trainers"]))
def test_every_element_arrives_once_and_from_an_owner(case, kind):
    sources = inventories(case.shape, case.trainer)
    targets, shapes = targets_of(case, kind)
    counts = {r: {n: np.zeros(s, int) for n, s in own.items()} for r, own in shapes.items()}
    owners = {r: owned(own) for r, own in sources.items()}
    for move in plan(sources, targets).moves:
        assert_from_an_owner(move, owners[move.src_rank])
        for name, box in members(move.dst_name, move.dst_box):
            counts[move.dst_rank][name][box.index] += 1
    for rank, own in counts.items():
        filled = local_shapes(targets[rank])
        for name, count in own.items():
            real = Box.whole(filled[name]).index if name in filled else np.s_[:0]
            assert (count[real] == 1).all(), name
            assert count.sum() == count[real].sum(), f"{name}: padding was written"


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from(["engines", "folder", "trainers"]), st.data())
def test_a_segment_that_no_source_holds_any_more_is_named(case, kind, data):
    sources = inventories(case.shape, case.trainer)
    targets, _ = targets_of(case, kind)
    lost = data.draw(st.sampled_from(sorted({(s.hf_name, s.hf_box) for own in sources.values() for s in own})))
    left = {r: tuple(s for s in own if (s.hf_name, s.hf_box) != lost) for r, own in sources.items()}
    with pytest.raises(PlanError) as refused:
        plan(left, targets)
    assert str(refused.value).startswith(f"{lost[0]}[")
    assert "no source holds it" in str(refused.value)


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from(["engines", "folder", "trainers"]), st.data())
def test_a_doubled_segment_is_named(case, kind, data):
    targets, _ = targets_of(case, kind)
    rank = data.draw(st.sampled_from([r for r in targets if targets[r]]))
    doubled = data.draw(st.sampled_from(targets[rank]))
    targets[rank] = (*targets[rank], doubled)
    with pytest.raises(PlanError) as refused:
        plan(inventories(case.shape, case.trainer), targets)
    assert f"{doubled.local_name}{doubled.local_box}" in str(refused.value)
    assert "overlap" in str(refused.value)


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from(["engines", "trainers"]), st.data())
def test_a_hole_in_a_fused_tensor_is_named(case, kind, data):
    """Not the last segment of a tensor: behind that one only the tensor's true shape tells padding from a hole."""
    targets, _ = targets_of(case, kind)
    rank = data.draw(st.sampled_from([r for r in targets if targets[r]]))
    stops = local_shapes(targets[rank])
    inner = [
        s
        for s in targets[rank]
        if any(n in stops and b.stop[0] < stops[n][0] for n, b in members(s.local_name, s.local_box))
    ]
    lost = data.draw(st.sampled_from(inner))
    targets[rank] = tuple(s for s in targets[rank] if s is not lost)
    with pytest.raises(PlanError, match="is filled by no segment") as refused:
        plan(inventories(case.shape, case.trainer), targets)
    assert lost.local_name in str(refused.value)


@pytest.mark.parametrize("trainer", [Mesh(dp=8), Mesh(tp=2, dp=4, ep=4, etp=1), Mesh(tp=2, pp=2, cp=2, dp=4, ep=2)])
def test_replicas_share_the_sending_evenly(trainer):
    """Of a model with many tensors, replicas that hold the same send within 2 % of each other."""
    shape = made_shape(family="qwen3_moe", layers=16, hidden=64, ffn=64, vocab=256, head_dim=16, heads=8, tied=False)
    shape = replace(shape, experts=replace(shape.experts, count=8, ffn_size=32))
    targets = engine_inventories(shape, EngineMesh(tp=2, dp=2, expert_parallel=True), trainer.world_size, 4)
    sources = inventories(shape, trainer)
    moves = plan(sources, targets)
    sent = Counter()
    for (src, _), num_bytes in moves.bytes_between(2).items():
        sent[src] += num_bytes
    for held in set(sources.values()):
        replicas = [sent[rank] for rank, own in sources.items() if own == held]
        assert max(replicas) <= 1.02 * min(replicas)


def test_a_replica_on_the_targets_node_is_preferred():
    shape, mesh = made_shape(layers=4), Mesh(tp=2, dp=2)  # ranks 0, 1 on one node and 2, 3 on another
    targets = engine_inventories(shape, EngineMesh(tp=2), 4, 2)
    nodes: dict = {rank: (node,) for rank, node in enumerate("aabbaabb")}
    moves = plan(inventories(shape, mesh), targets, nodes)
    assert all(nodes[m.src_rank] == nodes[m.dst_rank] for m in moves.moves)
    far = plan(inventories(shape, mesh), targets, nodes | dict.fromkeys((4, 5, 6, 7), ("c",)))
    assert {m.src_rank for m in far.moves} == {0, 1, 2, 3}


def test_a_plan_of_one_engine_is_what_the_whole_plan_says_about_it():
    shape, mesh = made_shape(layers=4), Mesh(tp=2, dp=2)
    moves = plan(inventories(shape, mesh), engine_inventories(shape, EngineMesh(tp=2), 4, 3))
    parts = [moves.into(range(4 + 2 * e, 6 + 2 * e)) for e in range(3)]
    assert sorted(map(repr, moves.moves)) == sorted(repr(m) for part in parts for m in part.moves)
    assert [part.ranks[-2:] for part in parts] == [(4, 5), (6, 7), (8, 9)]
    assert all([b.tag for b in part.schedule(500, 2)] == list(range(len(part.schedule(500, 2)))) for part in parts)


def test_a_part_of_a_tensor_in_its_own_coordinates_is_no_hole():
    """What a worker takes in checkpoint form: the boxes that it holds, where they lie in the folder's tensors."""
    shape = made_shape(layers=2, groups=4)
    held = engine_inventories(shape, EngineMesh(tp=2), 1)[2]
    parts = tuple(Segment(s.hf_name, s.hf_box, s.hf_name, s.hf_box) for s in held)
    assert any(s.local_box.start[0] > 0 for s in parts)
    assert len(plan(inventories(shape, Mesh()), {1: parts}).moves) >= len(parts)
