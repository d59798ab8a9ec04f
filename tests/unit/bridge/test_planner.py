import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.bridge.boxes import Box, Segment
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes
from megatron_spell.bridge.planner import Plan, PlanError, plan
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import inventories, laid_out, made_shape, made_weights


def carried_out(moves, sources: dict, targets: dict) -> None:
    """The plan with numpy: an oracle for the executor, and itself checked against direct slicing."""
    for m in moves:
        targets[m.dst_rank][m.dst_name][m.dst_box.index] = sources[m.src_rank][m.src_name][m.src_box.index]


def empty_like(tensors: dict) -> dict:
    return {r: {n: np.full_like(v, np.nan) for n, v in own.items()} for r, own in tensors.items()}


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for rank, own in expected.items():
        for name, value in own.items():
            np.testing.assert_array_equal(found[rank][name], value, err_msg=f"{rank} {name}")


def segment(hf: str, start: int, stop: int, local: str = "w", at: int = 0) -> Segment:
    return Segment(hf, Box((start,), (stop,)), local, Box((at,), (at + stop - start,)))


MESHES = st.builds(
    Mesh, tp=st.sampled_from([1, 2, 4]), pp=st.sampled_from([1, 2]), dp=st.integers(1, 2), cp=st.integers(1, 2)
)


@settings(max_examples=40, deadline=None)
@given(
    MESHES,
    MESHES,
    MESHES,
    st.sampled_from(["llama", "qwen2", "qwen3"]),
    st.booleans(),
    st.integers(1, 2),
    st.integers(2, 23),
    st.integers(4, 400),
)
def test_resharding_equals_direct_slicing(a, b, c, family, tied, queries, vocab, bucket_bytes):
    shape = made_shape(heads=4 * queries, groups=4, vocab=vocab, tied=tied, hidden=6, ffn=8, head_dim=2, family=family)
    weights = made_weights(shape)
    folder = {0: weights}
    held, holders = folder, {0: checkpoint_inventory(shape)}
    for mesh in (a, b, c, None):  # folder -> A -> B -> C -> folder
        target = {0: checkpoint_inventory(shape)} if mesh is None else inventories(shape, mesh)
        expected = folder if mesh is None else {r: laid_out(shape, weights, mesh, r) for r in range(mesh.world_size)}
        found = empty_like(expected)
        moves = plan(holders, target)
        carried_out([m for x in moves.schedule(bucket_bytes, 4) for _, m in x.moves], held, found)
        assert_equal(found, expected)
        assert Plan.from_json(moves.to_json()) == moves
        held, holders = found, target


@pytest.mark.parametrize("rank", range(4))
def test_a_hole_is_named(rank):
    shape = made_shape()
    sources = inventories(shape, Mesh(tp=2, pp=2))
    del sources[rank]
    with pytest.raises(PlanError, match=r"model\.\S+\[\d+:\d+.*\]: target rank 9 needs it and no source holds it"):
        plan(sources, {9: checkpoint_inventory(shape)})


def test_the_missing_part_of_a_box_is_named():
    with pytest.raises(PlanError, match=r"t\[2:3\]: target rank 1 needs it"):
        plan({0: (segment("t", 0, 2), segment("t", 3, 6, at=2))}, {1: (segment("t", 0, 6),)})


def test_sources_that_partly_overlap_are_refused():
    sources = {0: (segment("t", 0, 4),), 1: (segment("t", 2, 6),)}
    with pytest.raises(PlanError, match=r"t: sources hold the overlapping boxes \[0:4\] and \[2:6\] .*\[0\] and \[1\]"):
        plan(sources, {2: (segment("t", 0, 6),)})


def test_a_doubled_target_is_refused():
    target = (segment("t", 0, 4), segment("u", 0, 4, at=3))
    with pytest.raises(PlanError, match=r"target rank 2: w\[0:4\] for t and w\[3:7\] for u overlap"):
        plan({0: (segment("t", 0, 4), segment("u", 0, 4, at=4))}, {2: target})


def test_numbers_of_dims_that_differ_are_refused():
    flat, square = segment("t", 0, 4), Segment("t", Box((0, 0), (2, 2)), "w", Box((0, 0), (2, 2)))
    with pytest.raises(PlanError, match="t: sources hold"):
        plan({0: (flat,), 1: (square,)}, {2: (flat,)})
    with pytest.raises(PlanError, match=r"t: sources hold \[0:4\], target rank 2 needs \[0:2, 0:2\]"):
        plan({0: (flat,)}, {2: (square,)})
    with pytest.raises(PlanError, match="overlap"):
        plan({0: (flat,)}, {2: (flat, square)})


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_replicas_share_the_sending_by_bytes(tp, pp, dp, num_engines, tied):
    shape, mesh = made_shape(tied=tied), Mesh(tp=tp, pp=pp, dp=dp)
    targets = {mesh.world_size + e: checkpoint_inventory(shape) for e in range(num_engines)}
    moves = plan(inventories(shape, mesh), targets)
    sent = Counter()
    for (src, _), num_bytes in moves.bytes_between(itemsize=2).items():
        sent[src] += num_bytes
    total = num_engines * sum(int(np.prod(s)) for s in checkpoint_shapes(shape).values()) * 2
    assert sum(sent.values()) == total
    largest = max(m.num_elements for m in moves.moves) * 2
    for tp_rank in range(tp):
        for stage in range(pp):
            replicas = [sent[r] for r, at in mesh.ranks() if (at.tp, at.pp) == (tp_rank, stage)]
            assert max(replicas) - min(replicas) <= largest
            assert min(replicas) > 0


def test_a_box_too_large_to_share_is_made_up_for_with_small_ones():
    big, small = segment("big", 0, 90), [segment(f"s{i}", 0, 10, f"s{i}") for i in range(11)]
    sent = plan(dict.fromkeys((0, 1), (big, *small)), {2: (*small, big)}).bytes_between(1)
    assert sent == {(0, 2): 100, (1, 2): 100}


def test_a_target_takes_its_own_copy():
    shape, mesh = made_shape(), Mesh(dp=2)
    moves = plan(inventories(shape, mesh), {1: checkpoint_inventory(shape)})
    assert {m.src_rank for m in moves.moves} == {1}


def test_the_same_inventories_give_the_same_plan():
    shape, mesh = made_shape(), Mesh(tp=2, dp=2)
    sources, target = inventories(shape, mesh), {4: checkpoint_inventory(shape)}
    again = plan(dict(reversed(sources.items())), target)
    assert again == plan(sources, target)
    assert again.ranks == (0, 1, 2, 3, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.sampled_from([1, 2]), st.integers(1, 2))
def test_buckets_hold_every_element_once_and_keep_their_size(bucket_bytes, itemsize, num_engines):
    shape, mesh = made_shape(layers=1), Mesh(tp=2)
    moves = plan(inventories(shape, mesh), {2 + e: checkpoint_inventory(shape) for e in range(num_engines)})
    seen = {2 + e: {n: np.zeros(s, int) for n, s in checkpoint_shapes(shape).items()} for e in range(num_engines)}
    for pair, buckets in moves.messages(bucket_bytes, itemsize).items():
        assert [b.tag for b in buckets] == sorted({b.tag for b in buckets})
        for bucket in buckets:
            assert (bucket.src_rank, bucket.dst_rank) == pair
            assert 0 < bucket.num_bytes <= bucket_bytes
            at = 0
            for offset, move in bucket.moves:
                assert offset == at
                at += move.num_elements * itemsize
                seen[move.dst_rank][move.dst_name][move.dst_box.index] += 1
            assert at == bucket.num_bytes
    assert all((count == 1).all() for own in seen.values() for count in own.values())


def test_a_large_move_is_cut_along_rows_and_then_columns():
    box = Box((0, 0), (4, 6))
    held = (Segment("t", box, "a", box),)
    by_rows = plan({0: held}, {1: held}).schedule(bucket_bytes=12, itemsize=1)
    assert [str(m.hf_box) for b in by_rows for _, m in b.moves] == ["[0:2, 0:6]", "[2:4, 0:6]"]
    by_columns = plan({0: held}, {1: held}).schedule(bucket_bytes=4, itemsize=1)
    assert [str(m.hf_box) for b in by_columns for _, m in b.moves][:3] == ["[0:1, 0:4]", "[0:1, 4:6]", "[1:2, 0:4]"]


def test_targets_take_turns():
    held = (segment("t", 0, 8),)
    order = [b.dst_rank for b in plan({0: held}, {1: held, 2: held}).schedule(bucket_bytes=4, itemsize=1)]
    assert order == [1, 2, 1, 2]


def test_a_bucket_smaller_than_an_element_is_refused():
    held = (segment("t", 0, 8),)
    with pytest.raises(PlanError, match="bucket_bytes = 1: cannot hold one element of 2 bytes"):
        plan({0: held}, {1: held}).schedule(bucket_bytes=1, itemsize=2)


def test_a_large_plan_stays_small_as_text():
    shape = made_shape(heads=32, groups=8, layers=54, vocab=151936, hidden=2048, ffn=6144, head_dim=128)
    moves = plan(inventories(shape, Mesh(tp=8)), {8: checkpoint_inventory(shape)})
    assert len(checkpoint_shapes(shape)) > 590
    assert len(moves.to_json()) < 1_000_000


GOOD = json.loads(plan({0: (segment("t", 0, 8),)}, {1: (segment("t", 0, 8),)}).to_json())


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.pop("format"),
        lambda p: p.update(format="other"),
        lambda p: p.update(names=["t", 3]),
        lambda p: p.update(moves=3),
        lambda p: p["moves"][0].pop(),
        lambda p: p["moves"][0].__setitem__(0, -1),
        lambda p: p["moves"][0].__setitem__(2, 99),
        lambda p: p["moves"][0].__setitem__(5, [0]),
        lambda p: p["moves"][0].__setitem__(5, [1.5]),
        lambda p: p["moves"][0].__setitem__(6, [0, 0]),
        lambda p: p["moves"][0].__setitem__(6, "0"),
    ],
)
def test_a_damaged_plan_is_refused(damage):
    text = json.dumps(GOOD)
    Plan.from_json(text)
    spoilt = json.loads(text)
    damage(spoilt)
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json(json.dumps(spoilt))


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json(text)
