from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.bridge.boxes import BridgeError
from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.inventory import checkpoint_inventory, trainer_inventory
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.transports.base import TransportError, TransportTimeout, peer_names
from megatron_spell.bridge.transports.memory import MemoryHub
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import inventories, laid_out, made_shape, made_weights


def tensors_of(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}


def side_by_side(*calls):
    """Run each call in a thread of its own; the first exception is raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def mesh_tensors(shape, weights, mesh: Mesh) -> dict[int, dict[str, torch.Tensor]]:
    return {r: tensors_of(laid_out(shape, weights, mesh, r)) for r in range(mesh.world_size)}


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([Mesh(), Mesh(tp=2), Mesh(tp=2, pp=2), Mesh(dp=3)]),
    st.integers(1, 2),
    st.integers(8, 3000),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_engines_get_whole_tensors_of_the_wire_dtype(mesh, num_engines, bucket_bytes, dtype):
    shape = made_shape()
    weights = made_weights(shape)
    engines = range(mesh.world_size, mesh.world_size + num_engines)
    moves = plan(inventories(shape, mesh), dict.fromkeys(engines, checkpoint_inventory(shape)))
    hub, settings_ = MemoryHub(timeout_s=20), {"dtype": dtype, "bucket_bytes": bucket_bytes}
    senders = [
        lambda r=r, own=own: Sender(moves, r, own, **settings_).run(hub.transport(r))
        for r, own in mesh_tensors(shape, weights, mesh).items()
    ]
    receivers = [lambda r=r: list(Receiver(moves, r, **settings_).tensors(hub.transport(r))) for r in engines]
    for found in side_by_side(*senders, *receivers)[mesh.world_size :]:
        assert sorted(name for name, _ in found) == sorted(weights)
        for name, tensor in found:
            assert tensor.dtype == dtype
            assert torch.equal(tensor, torch.from_numpy(weights[name]).to(dtype)), name


@settings(max_examples=15, deadline=None)
@given(st.permutations([Mesh(tp=4), Mesh(pp=2, tp=2), Mesh(dp=2, tp=2), Mesh(pp=2, dp=2)]), st.integers(8, 2000))
def test_ranks_that_send_and_receive_reshard_in_place(meshes, bucket_bytes):
    """Every rank is source and target at once; a send is not done before its peer takes it."""
    shape = made_shape(groups=4)
    weights, before, after = made_weights(shape), *meshes[:2]
    moves = plan(inventories(shape, before), inventories(shape, after))
    held, hub = mesh_tensors(shape, weights, before), MemoryHub(timeout_s=20)
    expected = mesh_tensors(shape, weights, after)
    found = {r: {n: torch.full_like(t, torch.nan) for n, t in own.items()} for r, own in expected.items()}

    def reshard(r: int) -> None:
        receiver = Receiver(moves, r, dtype=torch.float32, bucket_bytes=bucket_bytes, sources=held[r])
        receiver.into(hub.transport(r), found[r])

    side_by_side(*(lambda r=r: reshard(r) for r in range(4)))
    for r, own in expected.items():
        for name, tensor in own.items():
            assert torch.equal(torch.nan_to_num(found[r][name], 99.0), torch.nan_to_num(tensor, 99.0)), name


def one_pair(shape=None):
    shape = shape or made_shape(layers=1)
    moves = plan({0: trainer_inventory(shape, Mesh(), 0)}, {1: checkpoint_inventory(shape)})
    return shape, moves, tensors_of(laid_out(shape, made_weights(shape), Mesh(), 0))


def test_a_sender_may_run_again_with_changed_weights():
    shape, moves, own = one_pair()
    hub = MemoryHub(timeout_s=10)
    sender = Sender(moves, 0, own, dtype=torch.float32, bucket_bytes=200)
    receiver = Receiver(moves, 1, dtype=torch.float32, bucket_bytes=200)
    for seed in (1, 2):
        weights = made_weights(shape, seed)
        for name, value in laid_out(shape, weights, Mesh(), 0).items():
            own[name].copy_(torch.from_numpy(value))
        _, found = side_by_side(lambda: sender.run(hub.transport(0)), lambda: dict(receiver.tensors(hub.transport(1))))
        assert all(torch.equal(found[n], torch.from_numpy(w)) for n, w in weights.items())


def test_few_tensors_are_incomplete_at_a_time():
    """Two tensor-parallel halves arrive side by side, so a tensor completes before many others begin."""
    shape = made_shape(layers=6, groups=4)
    moves = plan(inventories(shape, Mesh(tp=2)), {2: checkpoint_inventory(shape)})
    bucket_bytes, itemsize = 2000, 4
    left = {}
    for move in moves.moves:
        left[move.dst_name] = left.get(move.dst_name, 0) + move.num_elements
    total, worst, begun = dict(left), 0, set()
    for bucket in moves.schedule(bucket_bytes, itemsize):
        for _, move in bucket.moves:
            begun.add(move.dst_name)
            left[move.dst_name] -= move.num_elements
            if not left[move.dst_name]:
                begun.discard(move.dst_name)
            worst = max(worst, sum(total[name] * itemsize for name in begun))
    assert worst <= 2 * 2 * bucket_bytes + max(total.values()) * itemsize


def test_conversion_happens_on_the_way():
    shape, moves, own = one_pair()
    hub = MemoryHub(timeout_s=10)
    landed = {n: torch.zeros(w.shape, dtype=torch.float64) for n, w in made_weights(shape).items()}
    receiver = Receiver(moves, 1, dtype=torch.bfloat16)
    side_by_side(
        lambda: Sender(moves, 0, own, dtype=torch.bfloat16).run(hub.transport(0)),
        lambda: receiver.into(hub.transport(1), landed),
    )
    expected = torch.from_numpy(made_weights(shape)["model.norm.weight"]).to(torch.bfloat16).to(torch.float64)
    assert torch.equal(landed["model.norm.weight"], expected)


def test_parameters_that_require_gradients_can_be_landed_in():
    shape, moves, own = one_pair()
    hub = MemoryHub(timeout_s=10)
    landed = {n: torch.nn.Parameter(torch.zeros(w.shape)) for n, w in made_weights(shape).items()}
    sending = {n: torch.nn.Parameter(t) for n, t in own.items()}
    receiver = Receiver(moves, 1, dtype=torch.float32)
    side_by_side(
        lambda: Sender(moves, 0, sending, dtype=torch.float32).run(hub.transport(0)),
        lambda: receiver.into(hub.transport(1), landed),
    )
    assert torch.equal(landed["model.norm.weight"], own["decoder.final_layernorm.weight"])


def test_faults_of_the_caller_are_named():
    shape, moves, own = one_pair()
    name = "decoder.layers.0.mlp.linear_fc2.weight"
    short = {n: t for n, t in own.items() if n != name}
    with pytest.raises(BridgeError, match=rf"rank 0: the plan needs {name}\[0:12, 0:24\], no such tensor was given"):
        Sender(moves, 0, short, dtype=torch.float32)
    with pytest.raises(BridgeError, match=r"the tensor has shape \(12, 23\)"):
        Sender(moves, 0, {**own, name: own[name][:, :23]}, dtype=torch.float32)
    with pytest.raises(BridgeError, match=r"rank 1: the plan needs model.embed_tokens.weight"):
        Receiver(moves, 1, dtype=torch.float32).into(MemoryHub().transport(1), {})
    with pytest.raises(BridgeError, match="rank 1: receives as well; use Receiver with sources"):
        Sender(moves, 1, {}, dtype=torch.float32)
    with pytest.raises(BridgeError, match="the transport is that of rank 5"):
        Sender(moves, 0, own, dtype=torch.float32).run(MemoryHub().transport(5))
    assert shape.num_layers == 1


def test_a_silent_peer_is_named():
    _, moves, own = one_pair()
    hub = MemoryHub(timeout_s=0.05, names=peer_names(num_trainers=1, num_engines=1))
    with pytest.raises(
        TransportTimeout, match=r"engine 0 waited 0\.05 s for message 0 \(10048 bytes\) from trainer rank 0"
    ):
        list(Receiver(moves, 1, dtype=torch.float32).tensors(hub.transport(1)))
    with pytest.raises(TransportTimeout, match=r"waited 0\.05 s for engine 0 to take message 0"):
        Sender(moves, 0, own, dtype=torch.float32).run(hub.transport(0))


def test_two_sides_that_disagree_about_buckets_are_found():
    hub = MemoryHub(timeout_s=1)
    hub.transport(0).send(1, 7, torch.zeros(4, dtype=torch.uint8))
    receiving = hub.transport(1)
    with pytest.raises(TransportError, match="message 7 from rank 0 has 4 bytes, expected were 6"):
        receiving.receive(0, 7, torch.zeros(6, dtype=torch.uint8), 6).wait()
    receiving.close()


def test_a_copy_on_one_rank_is_rounded_like_one_that_travelled():
    """Otherwise replicas that got their weights from elsewhere would differ from it in the last bits."""
    shape = made_shape(layers=1)
    moves = plan({0: trainer_inventory(shape, Mesh(), 0)}, {0: checkpoint_inventory(shape)})
    own = tensors_of(laid_out(shape, made_weights(shape), Mesh(), 0))
    landed = {n: torch.zeros(w.shape) for n, w in made_weights(shape).items()}
    receiver = Receiver(moves, 0, dtype=torch.bfloat16, sources=own)
    receiver.into(MemoryHub().transport(0), landed)
    for name, value in made_weights(shape).items():
        assert torch.equal(landed[name], torch.from_numpy(value).to(torch.bfloat16).float()), name
