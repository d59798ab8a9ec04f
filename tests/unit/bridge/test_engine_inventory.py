from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.bridge.boxes import BridgeError
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places, engine_shapes
from megatron_spell.bridge.inventory import checkpoint_inventory
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.rules import Cut, HfTensor, qkv_stacked
from megatron_spell.bridge.stacks import member
from megatron_spell.layout.engine_mesh import EngineMesh
from tests.unit.bridge.drawn_layouts import engine_meshes, shapes
from tests.unit.bridge.made_engines import engine_laid_out
from tests.unit.bridge.made_weights import made_shape, made_weights


def hf_values(weights, name: str, box) -> np.ndarray:
    if "*" not in name:
        return weights[name][box.index]
    return np.stack([weights[member(name, i)][box.index[1:]] for i in range(box.start[0], box.stop[0])])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_worker_is_what_direct_slicing_gives(data):
    shape = data.draw(shapes())
    mesh = data.draw(engine_meshes(shape))
    weights = made_weights(shape)
    for rank, place in enumerate(engine_places(shape, mesh)):
        expected = engine_laid_out(shape, weights, mesh, rank)
        assert engine_shapes(shape, place) == {name: value.shape for name, value in expected.items()}
        found = {name: np.full_like(value, np.nan) for name, value in expected.items()}
        for s in engine_inventory(shape, place):
            assert np.isnan(found[s.local_name][s.local_box.index]).all(), "written twice"
            found[s.local_name][s.local_box.index] = hf_values(weights, s.hf_name, s.hf_box)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_experts_of_a_layer_move_together():
    """A layer's 4 experts are 3 moves to a worker that has them all, however many there are."""
    shape = made_shape(family="qwen3_moe", layers=1)
    many = replace(shape, experts=replace(shape.experts, count=128))
    for each in (shape, many):
        (place,) = engine_places(each, EngineMesh())
        moves = plan({0: checkpoint_inventory(each)}, {1: engine_inventory(each, place)}).moves
        assert sum("experts" in move.hf_name for move in moves) == 3


def test_a_head_is_never_cut():
    """6 rows of 3 heads divide over 2, the heads do not."""
    hf = [HfTensor("q", (8, 3)), HfTensor("k", (6, 3)), HfTensor("v", (6, 3))]
    with pytest.raises(BridgeError, match="k: 3 heads do not divide over tp = 2"):
        list(qkv_stacked("qkv", hf, Cut(0, 2, 2, 64)))
    with pytest.raises(BridgeError, match="q: 3 heads do not divide over tp = 2"):
        list(qkv_stacked("qkv", [HfTensor("q", (6, 3)), *hf[1:]], Cut(0, 2, 2, 64)))
    two = [HfTensor("q", (12, 3)), HfTensor("k", (4, 3)), HfTensor("v", (4, 3))]
    with pytest.raises(BridgeError, match="k: 2 key-value heads cannot be shared evenly by tp = 3"):
        list(qkv_stacked("qkv", two, Cut(0, 3, 2, 64)))


@pytest.mark.parametrize(("index", "head"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_neighbours_hold_the_same_key_value_head(index, head):
    hf = [HfTensor("q", (8, 3)), HfTensor("k", (4, 3)), HfTensor("v", (4, 3))]
    found = [(s.hf_name, s.hf_box.start[0], s.local_box.start[0]) for s in qkv_stacked("w", hf, Cut(index, 4, 2, 64))]
    assert found == [("q", 2 * index, 0), ("k", 2 * head, 2), ("v", 2 * head, 4)]


def test_the_vocabulary_is_padded_to_a_multiple_of_64():
    shape = made_shape(vocab=65, tied=False)
    places = engine_places(shape, EngineMesh(tp=4))
    assert [engine_shapes(shape, place)["lm_head.weight"][0] for place in places] == [32] * 4
    rows = [[s.hf_box for s in engine_inventory(shape, place) if s.local_name == "lm_head.weight"] for place in places]
    assert [[(box.start[0], box.stop[0]) for box in boxes] for boxes in rows] == [[(0, 32)], [(32, 64)], [(64, 65)], []]
