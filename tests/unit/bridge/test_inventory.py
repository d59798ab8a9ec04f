from dataclasses import replace
from math import lcm

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.bridge.boxes import BridgeError
from megatron_spell.bridge.inventory import (
    checkpoint_inventory,
    checkpoint_shapes,
    local_shapes,
    trainer_inventory,
    trainer_shapes,
)
from megatron_spell.bridge.stacks import unstacked
from megatron_spell.layout.mesh import Coordinates, Mesh
from tests.unit.bridge.made_weights import laid_out, made_shape, made_weights

FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe"]


def splits(draw, pp: int, vpp: int) -> tuple[int, tuple[int, ...] | None]:
    """A number of layers and a split of it: even (None) or any."""
    if draw(st.booleans()):
        return pp * vpp * draw(st.integers(1, 2)), None
    stage_layers = tuple(draw(st.lists(st.integers(1, 3), min_size=pp * vpp, max_size=pp * vpp)))
    return sum(stage_layers), stage_layers


@st.composite
def models_on_meshes(draw):
    tp, pp = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2]))
    vpp = draw(st.sampled_from([1, 2, 3])) if pp > 1 else 1
    layers, stage_layers = splits(draw, pp, vpp)
    stages = {"pp": pp, "vpp": vpp, "stage_layers": stage_layers}
    groups = tp * draw(st.integers(1, 2))
    shape = made_shape(
        heads=groups * draw(st.integers(1, 3)),
        groups=groups,
        layers=layers,
        vocab=draw(st.integers(2, 19)),
        tied=draw(st.booleans()),
        hidden=draw(st.sampled_from([3, 8])),
        ffn=tp * draw(st.integers(1, 3)),
        head_dim=2,
        family=draw(st.sampled_from(FAMILIES)),
    )
    if shape.experts is None:
        return shape, Mesh(tp=tp, dp=draw(st.integers(1, 2)), **stages)
    ep, etp = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([None, 1, 2]))
    folded = ep * (tp if etp is None else etp)
    dp = lcm(folded, tp) // tp * draw(st.integers(1, 2))
    experts = replace(shape.experts, ffn_size=(tp if etp is None else etp) * draw(st.integers(1, 3)))
    return replace(shape, experts=experts), Mesh(tp=tp, dp=dp, ep=ep, etp=etp, **stages)


@settings(max_examples=60, deadline=None)
@given(models_on_meshes())
def test_every_rank_is_what_direct_slicing_gives(case):
    shape, mesh = case
    weights = made_weights(shape)
    for rank in range(mesh.world_size):
        expected = laid_out(shape, weights, mesh, rank)
        assert trainer_shapes(shape, mesh, rank) == {name: value.shape for name, value in expected.items()}
        found = {name: np.full_like(value, np.nan) for name, value in expected.items()}
        for s in unstacked(trainer_inventory(shape, mesh, rank)):
            assert np.isnan(found[s.local_name][s.local_box.index]).all(), "written twice"
            found[s.local_name][s.local_box.index] = weights[s.hf_name][s.hf_box.index]
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_the_tied_copy_stands_on_a_last_stage_of_its_own():
    tied, untied = made_shape(tied=True), made_shape(tied=False)
    one, two = Mesh(), Mesh(pp=2)
    assert "output_layer.weight" not in trainer_shapes(tied, one, 0)
    copy = [s.hf_name for s in trainer_inventory(tied, two, 1) if s.local_name == "output_layer.weight"]
    assert copy == ["model.embed_tokens.weight"]
    own = [s.hf_name for s in trainer_inventory(untied, two, 1) if s.local_name == "output_layer.weight"]
    assert own == ["lm_head.weight"]
    assert "output_layer.weight" not in trainer_shapes(untied, two, 0)


def test_replicas_have_equal_inventories():
    mesh = Mesh(tp=2, dp=2, cp=2)
    ranks = [mesh.rank(Coordinates(tp=1, cp=cp, dp=dp, pp=0)) for cp in range(2) for dp in range(2)]
    assert len({trainer_inventory(made_shape(), mesh, rank) for rank in ranks}) == 1


def test_the_folder_of_a_tied_model_has_no_output_layer():
    shape = made_shape(layers=1, tied=True)
    shapes = checkpoint_shapes(shape)
    assert next(iter(shapes)) == "model.embed_tokens.weight"
    assert list(shapes)[-1] == "model.norm.weight"
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (32, 12)
    assert len(shapes) == 13
    untied = checkpoint_shapes(replace(shape, tied_embeddings=False))
    assert untied == shapes | {"lm_head.weight": (37, 12)}
    assert local_shapes(checkpoint_inventory(shape)) == shapes
    assert sum(int(np.prod(s)) for s in untied.values()) == replace(shape, tied_embeddings=False).num_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_has_as_many_elements_as_the_model_has_parameters(family):
    shape = made_shape(family=family)
    assert sum(int(np.prod(s)) for s in checkpoint_shapes(shape).values()) == shape.num_parameters


def test_what_the_bridge_cannot_describe_is_refused():
    with pytest.raises(BridgeError, match="4 experts do not divide over ep = 3"):
        trainer_inventory(made_shape(family="qwen3_moe"), Mesh(dp=3, ep=3), 0)
    with pytest.raises(BridgeError, match="family = 'gpt2': the bridge knows llama, qwen2, qwen3, qwen3_moe"):
        checkpoint_shapes(replace(made_shape(), family="gpt2"))
    with pytest.raises(ValueError, match="outside a mesh"):
        trainer_inventory(made_shape(), Mesh(), 1)
