import threading

import pytest
import torch

from megatron_spell.bridge.inventory import checkpoint_inventory
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.transports.memory import MemoryHub
from megatron_spell.layout.mesh import Mesh
from megatron_spell.rollout.native_delivery import delivery
from megatron_spell.train.links import Meeting, NativeMeeting
from tests.unit.bridge.made_weights import inventories, laid_out, made_shape, made_weights
from tests.unit.bridge.test_executor import side_by_side

native = pytest.importorskip("megatron_spell.rollout.vllm_native", reason="vLLM is not installed")
from vllm.distributed.weight_transfer import nccl_engine  # noqa: E402


@pytest.mark.parametrize("mesh", [Mesh(tp=2, pp=2), Mesh(dp=2, ep=2)], ids=str)
def test_the_sender_sees_what_was_declared_and_every_bit_of_it(mesh):
    """Twice, with other weights the second time, and as vLLM's own check of declared against seen wants it."""
    shape = made_shape(family="qwen3_moe", layers=2, tied=False)
    hub, seen, held = MemoryHub(timeout_s=20), [], {}
    truths = [made_weights(shape, seed) for seed in (1, 2)]
    for rank in range(mesh.world_size):
        held[rank] = {n: torch.from_numpy(v.copy()) for n, v in laid_out(shape, truths[0], mesh, rank).items()}
    transports = {rank: hub.transport(rank) for rank in held}
    gathering = plan(inventories(shape, mesh), {0: checkpoint_inventory(shape)})
    sources = {
        rank: native.BridgeSource(gathering, held[rank], transports[rank], dtype=torch.float32, bucket_bytes=700)
        for rank in held
    }
    assert delivery(gathering, "float32", 700, 4) == {
        "names": [meta.name for meta in sources[0].metadata()],
        "dtype_names": ["float32"] * len(truths[0]),
        "shapes": [list(truths[0][meta.name].shape) for meta in sources[0].metadata()],
    }

    def iterate(rank: int) -> None:
        found = (
            nccl_engine.NCCLTrainerWeightTransferEngine._checked_iter(sources[rank], sources[rank].metadata())
            if rank == 0
            else sources[rank]
        )
        seen.extend(found)

    for truth in truths:
        for rank, tensors in held.items():
            for name, value in laid_out(shape, truth, mesh, rank).items():
                tensors[name].copy_(torch.from_numpy(value))
        seen.clear()
        threads = [threading.Thread(target=iterate, args=(rank,)) for rank in held]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert {name for name, _ in seen} == truth.keys()
        assert len(seen) == len(truth)
        assert all(torch.equal(tensor, torch.from_numpy(truth[name])) for name, tensor in seen)


def test_vllms_trainer_side_is_driven_as_it_wants_to_be(monkeypatch):
    """Its NCCL endpoint and its packed broadcast are replaced, the only parts that need GPUs."""
    shape, mesh = made_shape(layers=2), Mesh(tp=2)
    truth, hub, opened, sent = made_weights(shape), MemoryHub(timeout_s=20), [], {}
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: opened.append(info) or "group")

    def broadcast(iterator, group, src, post_iter_func, buffer_size_bytes, num_buffers):
        sent.update((name, tensor.clone()) for name, tensor in iterator)

    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", broadcast)
    meeting = Meeting(
        engine=0,
        name="engine 0",
        plan="",
        num_workers=4,
        num_trainers=2,
        host="10.0.0.1",
        port=1,
        dtype="float32",
        bucket_bytes=900,
        timeout_s=5,
        session="one",
        transport="vllm_nccl",
        native=NativeMeeting(port=7, plan=""),
    )
    gathering = plan(inventories(shape, mesh), {0: checkpoint_inventory(shape)})

    def run(rank: int) -> None:
        own = {n: torch.from_numpy(v) for n, v in laid_out(shape, truth, mesh, rank).items()}
        transport, how = hub.transport(rank), {"dtype": torch.float32, "bucket_bytes": meeting.bucket_bytes}
        native.NativeSender(gathering, own, transport, meeting.channel(), **how).run(transport, check=1)

    side_by_side(lambda: run(0), lambda: run(1))
    (info,) = opened
    assert (info.master_address, info.master_port, info.world_size, info.packed) == ("10.0.0.1", 7, 5, True)
    assert nccl_engine.NCCLWeightTransferInitInfo(**meeting.channel()).rank_offset == 1
    assert sent.keys() == truth.keys()
    assert all(torch.equal(sent[name], torch.from_numpy(value)) for name, value in truth.items())
