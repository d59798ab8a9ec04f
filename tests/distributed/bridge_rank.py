"""One process of the bridge's gloo tests: `bridge_rank.py weights BEFORE AFTER` and the like, see the functions."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.export import FolderPlan, gather_to_writer
from megatron_spell.bridge.hf_files import read_segments
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.transports.base import TransportError, TransportTimeout, peer_names
from megatron_spell.bridge.transports.gloo import GroupTransport, join, open_store, rendezvous
from megatron_spell.bridge.verify import compare, digests, sample_probes
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import inventories, laid_out, made_shape, made_weights

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
PORT = int(os.environ["MASTER_PORT"])
BUCKET_BYTES = 700
MESHES = {"tp2": Mesh(tp=2), "pp2": Mesh(pp=2), "dp2": Mesh(dp=2), "tp2pp2": Mesh(tp=2, pp=2)}


def meet(num_trainers: int, timeout_s: float = 30.0, session: str = "bridge"):
    names = peer_names(num_trainers, SIZE - num_trainers)
    return rendezvous("127.0.0.1", PORT, RANK, SIZE, timeout_s=timeout_s, names=names, session=session)


def weights(layout: str, tied: str, dtype_name: str) -> None:
    """Trainers of a layout publish twice to engines; every engine gets every bit. No default group exists."""
    mesh, dtype = MESHES[layout], getattr(torch, dtype_name)
    shape = made_shape(tied=tied == "tied", layers=4)
    engines = range(mesh.world_size, SIZE)
    moves = plan(inventories(shape, mesh), dict.fromkeys(engines, checkpoint_inventory(shape)))
    transport = meet(mesh.world_size)
    assert not dist.is_initialized()
    for version in (1, 2):
        truth = made_weights(shape, seed=version)
        if RANK not in engines:
            own = {n: torch.from_numpy(v) for n, v in laid_out(shape, truth, mesh, RANK).items()}
            Sender(moves, RANK, own, dtype=dtype, bucket_bytes=BUCKET_BYTES).run(transport)
        else:
            found = dict(Receiver(moves, RANK, dtype=dtype, bucket_bytes=BUCKET_BYTES).tensors(transport))
            assert found.keys() == truth.keys()
            assert all(torch.equal(found[n], torch.from_numpy(v).to(dtype)) for n, v in truth.items())
    transport.close()


def reshard(before: str, after: str, folder: str) -> None:
    """Megatron to Megatron over the default group, each rank source and target; then a folder written together."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    source, target, shape = MESHES[before], MESHES[after], made_shape(layers=4)
    truth = made_weights(shape)
    held, expected = (
        {n: torch.from_numpy(v) for n, v in laid_out(shape, truth, mesh, RANK).items()} for mesh in (source, target)
    )
    found = {n: torch.full_like(t, torch.nan) for n, t in expected.items()}
    transport = GroupTransport(dist.group.WORLD, timeout_s=30, names=peer_names(SIZE, 0))
    moves = plan(inventories(shape, source), inventories(shape, target))
    Receiver(moves, RANK, dtype=torch.float32, bucket_bytes=BUCKET_BYTES, sources=held).into(transport, found)
    assert all(torch.equal(found[n].nan_to_num(9.0), t.nan_to_num(9.0)) for n, t in expected.items())
    _digests_agree(shape, moves, target, found)
    place = Path(folder) / f"{before}-{after}"
    sizes, writers = checkpoint_shapes(shape), (1, 0)
    whole = checkpoint_inventory(shape)
    folder_plan = FolderPlan(inventories(shape, target), whole, writers=writers, max_shard_bytes=9000)
    gather_to_writer(place, found, folder_plan, transport, dtype=torch.float32, bucket_bytes=BUCKET_BYTES)
    whole = {n: torch.zeros(s) for n, s in sizes.items()}
    read_segments(place, checkpoint_inventory(shape), whole, sizes)
    assert all(torch.equal(whole[n], torch.from_numpy(v)) for n, v in truth.items())
    dist.destroy_process_group()


def _digests_agree(shape, moves, mesh: Mesh, tensors: dict) -> None:
    probes = sample_probes(moves, seed=5, max_elements=20)
    everyone: list = [None] * SIZE
    dist.all_gather_object(everyone, digests(probes, inventories(shape, mesh)[RANK], tensors, torch.float32))
    truth = {n: torch.from_numpy(v) for n, v in made_weights(shape).items()}
    expected = digests(probes, checkpoint_inventory(shape), truth, torch.float32)
    assert compare(probes, {f"rank {r}": found for r, found in enumerate(everyone)}, {"truth": expected}) == ()


def lost(way: str) -> None:
    """Trainer rank 1 dies or falls silent before it sends; the engine says so and says whom it means."""
    shape, mesh = made_shape(), Mesh(tp=2)
    moves = plan(inventories(shape, mesh), {2: checkpoint_inventory(shape)})
    transport = meet(num_trainers=2, timeout_s=4.0)
    store_of_the_parting = open_store("127.0.0.1", PORT, serve=False, timeout_s=30)
    if RANK < 2:
        own = {n: torch.from_numpy(v) for n, v in laid_out(shape, made_weights(shape), mesh, RANK).items()}
        if RANK == 0:
            _send_until_lost(Sender(moves, 0, own, dtype=torch.float32, bucket_bytes=BUCKET_BYTES), transport)
            store_of_the_parting.wait(["engine is done"], timedelta(seconds=30))
        elif way == "dies":
            os._exit(0)
        else:
            store_of_the_parting.wait(["engine is done"], timedelta(seconds=30))
        return
    started, kind = time.monotonic(), TransportError if way == "dies" else TransportTimeout
    try:
        list(Receiver(moves, 2, dtype=torch.float32, bucket_bytes=BUCKET_BYTES).tensors(transport))
        raise AssertionError("nobody was missed")
    except TransportError as error:
        assert isinstance(error, kind), repr(error)
        assert str(error).startswith("engine 0 "), error
        assert "bytes) from trainer rank 1" in str(error), error
        assert "\n" not in str(error)
    assert time.monotonic() - started < 10
    store_of_the_parting.set("engine is done", "1")


def _send_until_lost(sender: Sender, transport) -> None:
    try:
        sender.run(transport)
    except TransportError as error:
        assert "trainer rank 0 " in str(error), error
        assert "engine 0" in str(error), error


def absent() -> None:
    """Nobody is there to serve, then one of two peers never joins."""
    try:
        open_store("127.0.0.1", PORT + 1 if PORT < 65535 else PORT - 1, serve=False, timeout_s=1.0)
        raise AssertionError("a store that nobody serves was found")
    except TransportError as error:
        assert "for a rendezvous at 127.0.0.1:" in str(error), error
    store = open_store("127.0.0.1", 0, serve=True, timeout_s=5.0)
    try:
        join(store, 0, 3, timeout_s=1.0, names=peer_names(2, 1), address="127.0.0.1")
        raise AssertionError("met nobody and went on")
    except TransportTimeout as error:
        assert str(error) == "trainer rank 0 waited 1 s for trainer rank 1, engine 0 to join", error
    try:
        open_store("127.0.0.1", store.port, serve=True, timeout_s=1.0)
        raise AssertionError("served a port twice")
    except TransportError as error:
        assert f"cannot serve a rendezvous at 127.0.0.1:{store.port}" in str(error), error


if __name__ == "__main__":
    {"weights": weights, "reshard": reshard, "lost": lost, "absent": absent}[sys.argv[1]](*sys.argv[2:])
