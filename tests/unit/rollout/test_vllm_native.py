import threading

import pytest
import torch

from megatron_spell.bridge.transports.memory import MemoryHub
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import inventories, laid_out, made_shape, made_weights

native = pytest.importorskip("megatron_spell.rollout.vllm_native", reason="vLLM is not installed")
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine as VllmTrainer  # noqa: E402


@pytest.mark.parametrize("mesh", [Mesh(tp=2, pp=2), Mesh(dp=2, ep=2)], ids=str)
def test_the_sender_sees_what_was_declared_and_every_bit_of_it(mesh):
    """Twice, with other weights the second time, and as vLLM's own check of declared against seen wants it."""
    shape = made_shape(family="qwen3_moe", layers=2, tied=False)
    hub, seen, held = MemoryHub(timeout_s=20), [], {}
    truths = [made_weights(shape, seed) for seed in (1, 2)]
    for rank in range(mesh.world_size):
        held[rank] = {n: torch.from_numpy(v.copy()) for n, v in laid_out(shape, truths[0], mesh, rank).items()}
    transports = {rank: hub.transport(rank) for rank in held}
    sources = {
        rank: native.BridgeSource(
            shape, inventories(shape, mesh), held[rank], transports[rank], dtype=torch.float32, bucket_bytes=700
        )
        for rank in held
    }

    def iterate(rank: int) -> None:
        found = VllmTrainer._checked_iter(sources[rank], sources[rank].metadata()) if rank == 0 else sources[rank]
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


def test_a_client_passes_on_what_concerns_the_transfer_alone():
    calls = []
    client = native.EngineClient(
        lambda info: calls.append(("connect", info)), lambda info: calls.append(("take", info))
    )
    client.init_weight_transfer_engine({"a": 1})
    client.start_weight_update()
    client.update_weights({"b": 2})
    client.finish_weight_update("3")
    assert calls == [("connect", {"a": 1}), ("take", {"b": 2})]
