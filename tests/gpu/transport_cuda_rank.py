"""One process of the transports' GPU tests: `transport_cuda_rank.py stream KIND DEVICE` and the like."""

import os
import signal
import sys
import time
from datetime import timedelta

import torch

from megatron_spell.bridge.transports.base import TransportError, TransportTimeout, peer_names
from megatron_spell.bridge.transports.meeting import open_store
from megatron_spell.bridge.transports.routed import can_lend, meet

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
PORT = int(os.environ["MASTER_PORT"])
NUM_BYTES, NUM_BUCKETS = 8 * 2**20, 6
SLOW_CYCLES = 20_000_000  # about 10 ms of a GPU's clock, so that what is not waited for is not there yet


def bucket(number: int, version: int) -> torch.Tensor:
    """uint8 [NUM_BYTES] on the GPU that tells from which bucket and version it is."""
    steps = torch.arange(NUM_BYTES, device="cuda")
    return ((steps * (2 * number + 3) + 7 * version + number) % 251).to(torch.uint8)


def meet_on(device: str, kind: str, limit_s: float = 60.0, session: str = "bridge"):
    """The store and the transport of all ranks; `own` is a GPU for each rank, `same` one for all."""
    index = RANK if device == "own" else 0
    torch.cuda.set_device(index)
    store = open_store("127.0.0.1", PORT, serve=RANK == 0, timeout_s=60)
    how = {"timeout_s": limit_s, "names": peer_names(1, SIZE - 1), "session": session, "address": "127.0.0.1"}
    return store, meet(kind, store, RANK, SIZE, device=f"cuda:{index}", **how)


def publish(transport, versions: int) -> None:
    buffers, under_way = transport.send_buffers(NUM_BYTES), []
    assert all(buffer.is_cuda for buffer in buffers)
    for version in range(versions):
        for number in range(NUM_BUCKETS):
            if len(under_way) == 2:
                under_way.pop(0).wait()
            torch.cuda._sleep(SLOW_CYCLES)
            buffers[number % 2].copy_(bucket(number, version))
            under_way.append(transport.send(1, number, buffers[number % 2]))
    for pending in under_way:
        pending.wait()


def follow(transport, versions: int) -> bool:
    """Land all and say whether every byte came."""
    spare, places = [torch.empty(NUM_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2)], []
    for version in range(versions):
        for number in range(NUM_BUCKETS):
            buffer = None if transport.brings_memory else spare[number % 2]
            arrival = transport.receive(0, number, buffer, NUM_BYTES)
            seen = arrival.wait()
            torch.cuda._sleep(SLOW_CYCLES)
            places.append((number, version, seen.clone()))
            arrival.release()
    return all(torch.equal(place, bucket(number, version)) for number, version, place in places)


def end_together(store, transport) -> None:
    """The receiver lets go first, then memory that was shown is free again."""
    if RANK == 1:
        transport.close()
        store.set("receiver closed", "1")
        store.wait(["sender closed"], timedelta(seconds=60))
    else:
        store.wait(["receiver closed"], timedelta(seconds=60))
        transport.close()
        store.set("sender closed", "1")
        time.sleep(1.0)


def stream(kind: str, device: str) -> None:
    """Three versions, bit for bit, twice: once in a session of its own after all memory was given back."""
    for session in ("first", "second"):
        store, transport = meet_on(device, kind, session=session)
        publish(transport, 3) if RANK == 0 else None
        assert RANK == 0 or follow(transport, 3)
        end_together(dist_prefix(store, session), transport)
        del transport
        torch.cuda.synchronize()
        torch.cuda.ipc_collect()
        assert torch.cuda.memory_allocated() < NUM_BYTES, torch.cuda.memory_allocated()


def dist_prefix(store, name: str):
    return torch.distributed.PrefixStore(f"end {name}", store)


def unfenced(device: str) -> None:
    """The planted fault: with fences that do nothing the bytes must be wrong, or the check above proves nothing."""
    from megatron_spell.bridge.transports.ipc import EventFence

    EventFence.follow = lambda self: None
    store, transport = meet_on(device, "cuda_ipc")
    publish(transport, 2) if RANK == 0 else None
    assert RANK == 0 or not follow(transport, 2)
    end_together(store, transport)


def exposed(device: str) -> None:
    """Copies straight out of the trainer's own parameters, whatever their place in its allocator's blocks."""
    store, transport = meet_on(device, "auto")
    assert can_lend(transport, [1 - RANK])
    if RANK == 0:
        mine = {f"layer{i}": torch.zeros(300 + i, 70, dtype=torch.bfloat16, device="cuda") for i in range(40)}
        flat = torch.zeros(10_000, device="cuda")  # parameters are views of a common buffer in Megatron
        mine |= {"view": flat[100:4100].view(40, 100), "other": flat[5000:6000]}
        transport.expose(mine, [1])
        for version in range(4):
            torch.cuda._sleep(SLOW_CYCLES)
            for i, tensor in enumerate(mine.values()):
                tensor.fill_(version + i)
            transport.offer(1, version).wait()
    else:
        for version in range(4):
            borrowed = transport.borrow(0, version)
            copies = [tensor.clone() for tensor in borrowed.wait().values()]
            borrowed.release()
            assert all(bool(copy.eq(version + i).all()) for i, copy in enumerate(copies))
    end_together(store, transport)


def lost(kind: str, device: str, way: str) -> None:
    """The engine is killed or stopped; the trainer names it within its limit, and lives on."""
    limit_s = 5.0
    if RANK == 1:  # no CUDA yet: the child must be the first to use it
        child = os.fork()
        if child:
            open_store("127.0.0.1", PORT, serve=False, timeout_s=60).wait(["done"], timedelta(seconds=120))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
    store, transport = meet_on(device, kind, limit_s if RANK == 0 else 60.0)
    if RANK == 1:
        assert follow(transport, 1)
        os.kill(os.getpid(), signal.SIGKILL if way == "killed" else signal.SIGSTOP)
        time.sleep(60)
    publish(transport, 1)
    started = time.monotonic()
    try:
        publish(transport, 3)
        raise AssertionError("nobody was missed")
    except TransportError as error:
        assert "engine 0" in str(error) and "trainer rank 0" in str(error), error
        assert way == "killed" or isinstance(error, TransportTimeout), repr(error)
    assert time.monotonic() - started < 4 * limit_s
    transport.close()
    assert torch.ones(8, device="cuda").sum().item() == 8  # the GPU is still of use
    store.set("done", "1")
    time.sleep(2.0)


def speed(device: str) -> None:
    """Bytes a second of packing and landing over CUDA IPC, against one copy on the device."""
    store, transport = meet_on(device, "cuda_ipc")
    num_bytes, num_buckets = 64 * 2**20, 64
    mine, buffers = torch.zeros(num_bytes, dtype=torch.uint8, device="cuda"), transport.send_buffers(num_bytes)

    def copy() -> None:
        for number in range(num_buckets):
            buffers[number % 2].copy_(mine)

    def send() -> None:
        under_way = []
        for number in range(num_buckets):
            if len(under_way) == 2:
                under_way.pop(0).wait()
            buffers[number % 2].copy_(mine)
            under_way.append(transport.send(1, number, buffers[number % 2]))
        for pending in under_way:
            pending.wait()

    def receive() -> None:
        for number in range(num_buckets):
            arrival = transport.receive(0, number, None, num_bytes)
            mine.copy_(arrival.wait())
            arrival.release()

    for repeat in range(3):
        rates = []
        for part in (copy if RANK == 0 else None, send if RANK == 0 else receive):
            transport.post(1 - RANK, repeat, b"go")
            transport.collect(1 - RANK, repeat, 2)
            torch.cuda.synchronize()
            started = time.perf_counter()
            if part is not None:
                part()
            torch.cuda.synchronize()
            rates.append(num_bytes * num_buckets / (time.perf_counter() - started) / 1e9)
        if RANK == 0:
            print(f"over CUDA IPC {rates[1]:.0f} GB/s, {rates[1] / rates[0]:.2f} of a copy's rate")
    end_together(store, transport)


if __name__ == "__main__":
    cases = (stream, unfenced, exposed, lost, speed)
    {case.__name__: case for case in cases}[sys.argv[1]](*sys.argv[2:])
