import pytest
import torch

from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes, trainer_inventory
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.verify import compare, digest, digests, sample_probes
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import inventories, made_shape, made_weights
from tests.unit.bridge.test_executor import mesh_tensors, tensors_of

SHAPE = made_shape(groups=4, heads=4)  # q, k and v of one shape, so that a swap is possible
MESH = Mesh(tp=2, dp=2)
WIRE = torch.bfloat16


@pytest.fixture
def trainers():
    return mesh_tensors(SHAPE, made_weights(SHAPE), MESH)


@pytest.fixture
def engine():
    return tensors_of(made_weights(SHAPE))


def probes_of(max_elements=64, seed=3):
    moves = plan(inventories(SHAPE, MESH), {4: checkpoint_inventory(SHAPE)})
    return sample_probes(moves, seed, max_elements)


def compared(trainers, engine, probes=None) -> tuple[str, ...]:
    probes = probes or probes_of()
    left = {
        f"trainer rank {r}": digests(probes, trainer_inventory(SHAPE, MESH, r), own, WIRE)
        for r, own in trainers.items()
    }
    return compare(probes, left, {"engine 0": digests(probes, checkpoint_inventory(SHAPE), engine, WIRE)})


def swap(tensors, a: str, b: str) -> None:
    tensors[a], tensors[b] = tensors[b], tensors[a]


def test_equal_weights_agree(trainers, engine):
    assert compared(trainers, engine) == ()
    assert {p.hf_name for p in probes_of()} == set(checkpoint_shapes(SHAPE))


def test_the_wire_dtype_is_what_counts(trainers, engine):
    rounded = {name: tensor.to(WIRE).float() for name, tensor in engine.items()}
    assert compared(trainers, rounded) == ()


def test_a_flipped_bit_inside_a_probe_is_found(trainers, engine):
    probe = next(p for p in probes_of() if "down_proj" in p.hf_name)
    bits = engine[probe.hf_name].view(torch.int32)
    bits[probe.hf_box.start] ^= 1 << 16  # the last bit that bfloat16 keeps
    (fault,) = compared(trainers, engine)
    assert fault.startswith(f"{probe}: holders differ")
    assert "trainer rank 0, trainer rank 2: " in fault or "trainer rank 1, trainer rank 3: " in fault
    assert "engine 0: " in fault


@pytest.mark.parametrize("pair", [("self_attn.q_proj", "self_attn.k_proj"), ("mlp.gate_proj", "mlp.up_proj")])
def test_swapped_tensors_are_found(trainers, engine, pair):
    swap(engine, *(f"model.layers.1.{name}.weight" for name in pair))
    faults = compared(trainers, engine)
    assert {fault.split("[")[0] for fault in faults} == {f"model.layers.1.{name}.weight" for name in pair}


def test_a_replica_that_went_astray_is_found(trainers, engine):
    trainers[2]["decoder.final_layernorm.weight"][0] += 1
    (fault,) = compared(trainers, engine)
    assert "model.norm.weight" in fault
    assert "trainer rank 2: " in fault


def test_a_tied_copy_that_went_astray_is_found():
    mesh = Mesh(pp=2)
    inventory = (*trainer_inventory(SHAPE, mesh, 0), *trainer_inventory(SHAPE, mesh, 1))
    own = mesh_tensors(SHAPE, made_weights(SHAPE), mesh)
    both = own[0] | own[1]
    probes = [p for p in probes_of(max_elements=None) if "embed" in p.hf_name]
    assert compare(probes, {"a": digests(probes, inventory, both, WIRE)}) == ()
    both["output_layer.weight"][0, 0] += 1
    (fault,) = compare(probes, {"a": digests(probes, inventory, both, WIRE)})
    assert "+" in fault


def test_what_a_side_lacks_is_named(trainers, engine):
    del engine["model.norm.weight"]
    assert compared(trainers, engine) == ("model.norm.weight[0:12]: held by none of engine 0",)
    assert "an empty side" in compare(probes_of()[:1], {})[0]


def test_a_stream_can_be_digested_piece_by_piece(engine):
    probes, inventory = probes_of(), checkpoint_inventory(SHAPE)
    piecewise = {}
    for name, tensor in engine.items():
        piecewise |= digests(probes, inventory, {name: tensor}, WIRE)
    assert piecewise == digests(probes, inventory, engine, WIRE)


@pytest.mark.parametrize("max_elements", [1, 7, 64, 10_000])
def test_probes_are_samples_that_both_sides_find(max_elements):
    probes = probes_of(max_elements)
    assert probes == probes_of(max_elements)
    assert all(p.hf_box.num_elements <= max_elements for p in probes)
    moves = plan(inventories(SHAPE, MESH), {4: checkpoint_inventory(SHAPE)}).moves
    boxes = {(m.hf_name, m.hf_box) for m in moves}
    assert len(probes) == len(boxes)
    assert all(any(n == p.hf_name and box.contains(p.hf_box) for n, box in boxes) for p in probes)


def test_another_seed_probes_elsewhere():
    assert probes_of(seed=1) != probes_of(seed=2)


def test_shape_and_dtype_belong_to_the_digest():
    zeros = torch.zeros(4)
    assert digest(zeros, torch.float32) == digest(torch.zeros(8)[::2], torch.float32)
    views = {digest(zeros, torch.float32), digest(zeros.view(2, 2), torch.float32), digest(zeros, torch.float64)}
    assert len(views) == 3
