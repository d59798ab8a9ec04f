"""One process of the transports' tests: `transport_rank.py stream KIND` and the like, see the functions."""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch

from megatron_spell.bridge.transports import gloo, shm
from megatron_spell.bridge.transports.base import Party, Transport, TransportError, TransportTimeout, peer_names
from megatron_spell.bridge.transports.meeting import Meeting, open_store
from megatron_spell.bridge.transports.routed import meet

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
PORT = int(os.environ["MASTER_PORT"])
NUM_BYTES = 100_000
NUM_BUCKETS = 7


def bucket(number: int, version: int) -> torch.Tensor:
    """uint8 [NUM_BYTES or less] that tells from which bucket and version it is."""
    generator = torch.Generator().manual_seed(1000 * version + number)
    return torch.randint(0, 256, (NUM_BYTES - number,), dtype=torch.uint8, generator=generator)


def publish(transport: Transport, engines: list[int], version: int) -> None:
    """Each bucket to every engine in turn, two under way."""
    buffers, under_way, num_sent = publish_buffers(transport), [], 0
    for number in range(NUM_BUCKETS):
        for engine in engines:
            if len(under_way) == 2:
                under_way.pop(0).wait()
            view = buffers[num_sent % 2][: NUM_BYTES - number]
            view.copy_(bucket(number, version))
            under_way.append(transport.send(engine, number, view))
            num_sent += 1
    for pending in under_way:
        pending.wait()


def publish_buffers(transport: Transport) -> list[torch.Tensor]:
    """The transport's send buffers, asked for once."""
    if not hasattr(transport, "kept_buffers"):
        transport.kept_buffers = transport.send_buffers(NUM_BYTES)  # pyright: ignore
    return transport.kept_buffers  # pyright: ignore


def follow(transport: Transport, src: int, version: int) -> None:
    """Every bucket has every bit; two receives are under way."""
    spare = None if transport.brings_memory else [torch.empty(NUM_BYTES, dtype=torch.uint8) for _ in range(2)]
    arrivals = []
    for number in range(NUM_BUCKETS + 1):
        if number < NUM_BUCKETS:
            size = NUM_BYTES - number
            arrivals.append(transport.receive(src, number, spare and spare[number % 2][:size], size))
        if number >= 1:
            arrival = arrivals.pop(0)
            assert torch.equal(arrival.wait(), bucket(number - 1, version)), f"bucket {number - 1} of version {version}"
            arrival.release()


def store_of_all():
    return open_store("127.0.0.1", PORT, serve=RANK == 0, timeout_s=30)


def open_files() -> list[str]:
    """What this process has open or mapped of other than libraries."""
    gc.collect()
    files = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    maps = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:" in line]
    return sorted(file.split(":")[0] if file.startswith("socket:") else file for file in files + maps)


def stream(kind: str) -> None:
    """A trainer publishes three times to two engines, meets them anew and does it again; then nothing is left open."""
    store, before = store_of_all(), None
    for session in range(3):
        names = peer_names(1, SIZE - 1)
        how = {"timeout_s": 30, "names": names, "session": f"session{session}", "address": "127.0.0.1"}
        transport = meet(kind, store, RANK, SIZE, **how)
        for version in range(3):
            if RANK == 0:
                publish(transport, [1, 2], version)
                assert [transport.collect(engine, version, 2) for engine in (1, 2)] == [b"ok", b"ok"]
            else:
                follow(transport, 0, version)
                transport.post(0, version, b"ok")
        transport.close()
        del transport
        if before is None:  # the first session may open what stays, such as torch's own
            before = open_files()
            Meeting(store, "begin", Party(RANK, SIZE, 30)).roll_call("looked")
    after = open_files()
    part(store)
    assert after == before, (before, after)


def part(store) -> None:
    """Nobody ends before rank 0 has looked at its sockets, and rank 0 not before all know."""
    if RANK == 0:
        store.set("looked", "1")
        store.wait([f"rank {rank} parts" for rank in range(1, SIZE)], timedelta(seconds=30))
    else:
        store.wait(["looked"], timedelta(seconds=30))
        store.set(f"rank {RANK} parts", "1")


def lost(kind: str, way: str, whose: str) -> None:
    """A process is killed or stopped in the middle of a refresh; the other end says so and says whom it means."""
    victim = {"trainer": 0, "engine": 1}[whose]
    limit_s = 20.0 if way == "killed" else 3.0
    if RANK == 2:  # only serves the store, so that no victim does
        keys = ["the other end is done", "the victim is buried"]
        open_store("127.0.0.1", PORT, serve=True, timeout_s=30).wait(keys, timedelta(seconds=90))
        return
    if victim != RANK:
        lose_peer(kind, way, limit_s)
        return
    child = os.fork()
    if child == 0:
        part_of_victim(kind, way, limit_s)
    store = open_store("127.0.0.1", PORT, serve=False, timeout_s=30)
    store.wait(["the other end is done"], timedelta(seconds=60))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    store.set("the victim is buried", "1")


def join_two(kind: str, limit_s: float) -> Transport:
    store = open_store("127.0.0.1", PORT, serve=False, timeout_s=30)
    how = {"timeout_s": limit_s, "names": peer_names(1, 1)}
    return shm.join(store, RANK, 2, **how) if kind == "shm" else gloo.join(store, RANK, 2, address="127.0.0.1", **how)


def part_of_victim(kind: str, way: str, limit_s: float) -> None:
    """One refresh, then a sign that the end comes, then the end."""
    transport = join_two(kind, limit_s)
    publish(transport, [1], 0) if RANK == 0 else follow(transport, 0, 0)
    transport.post(1 - RANK, 0, b"now")
    if kind == "gloo":  # its messages go when they are asked for
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL if way == "killed" else signal.SIGSTOP)
    time.sleep(60)


def lose_peer(kind: str, way: str, limit_s: float) -> None:
    transport = join_two(kind, limit_s)
    publish(transport, [1], 0) if RANK == 0 else follow(transport, 0, 0)
    assert transport.collect(1 - RANK, 0, 3) == b"now"
    started = time.monotonic()
    try:
        for version in range(1, 100):
            publish(transport, [1], version) if RANK == 0 else follow(transport, 0, version)
        raise AssertionError("nobody was missed")
    except TransportError as error:
        text = str(error)
        me, peer = ("trainer rank 0", "engine 0") if RANK == 0 else ("engine 0", "trainer rank 0")
        if way == "killed":
            assert text.startswith(f"{me} lost {peer} waiting for "), text
        else:
            assert isinstance(error, TransportTimeout), repr(error)
            assert text.startswith(f"{me} waited 3 s for ") and peer in text, text
        assert "\n" not in text
    assert time.monotonic() - started < 10.0
    transport.close()
    open_store("127.0.0.1", PORT, serve=False, timeout_s=30).set("the other end is done", "1")


def links(kind: str) -> None:
    """A trainer has a link to each of two engines, in threads; one is killed, the other gets all its versions."""
    store, joined = store_of_all(), {}
    join = {"shm": shm.join, "gloo": lambda *a, **k: gloo.join(*a, address="127.0.0.1", **k)}[kind]

    def link(engine: int) -> Transport:
        how = {"timeout_s": 20.0, "names": peer_names(1, 1), "session": f"link{engine}"}
        return join(store, min(RANK, 1), 2, **how)

    def trainer_part(engine: int) -> None:
        joined[engine] = link(engine)
        for version in range(30):
            publish(joined[engine], [1], version)

    if RANK == 0:
        errors = in_threads([lambda: trainer_part(1), lambda: trainer_part(2)])
        assert errors[0] is None, errors[0]
        assert isinstance(errors[1], TransportError), errors[1]
        assert str(errors[1]).startswith("trainer rank 0 lost engine 0 waiting for"), errors[1]
        for transport in joined.values():
            transport.close()
        store.wait(["engine 1 is done", "engine 2 is done"], timedelta(seconds=30))
        return
    child = os.fork() if RANK == 2 else 0
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        store = open_store("127.0.0.1", PORT, serve=False, timeout_s=30) if RANK == 2 else store
        transport = link(RANK)
        for version in range(30):
            if RANK == 2 and version == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            follow(transport, 0, version)
        transport.close()
    open_store("127.0.0.1", PORT, serve=False, timeout_s=30).set(f"engine {RANK} is done", "1")


def in_threads(parts: list[Callable[[], None]]) -> list[Exception | None]:
    """What each part raised."""
    errors: list[Exception | None] = [None] * len(parts)

    def run(index: int) -> None:
        try:
            parts[index]()
        except Exception as error:  # looked at by the caller
            errors[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def exposed() -> None:
    """An engine copies straight out of a trainer's tensors, as they are at each offer."""
    transport = shm.join(store_of_all(), RANK, SIZE, timeout_s=20, names=peer_names(1, SIZE - 1))
    if RANK == 0:
        mine = transport.memory.like({f"layer{i}": torch.zeros(100, 3 + i, dtype=torch.bfloat16) for i in range(50)})
        transport.expose(mine, [1, 2])
        for version in range(5):
            for i, tensor in enumerate(mine.values()):
                tensor.fill_(version + i)
            for pending in [transport.offer(engine, version) for engine in (1, 2)]:
                pending.wait()
    else:
        for version in range(5):
            borrowed = transport.borrow(0, version)
            for i, tensor in enumerate(borrowed.wait().values()):
                assert tensor.shape == (100, 3 + i) and tensor.eq(version + i).all()
            borrowed.release()
        transport.post(0, 0, b"ok")
    if RANK == 0:
        assert [transport.collect(engine, 0, 2) for engine in (1, 2)] == [b"ok"] * 2
    transport.close()


def careless() -> None:
    """The planted fault: a sender that does not wait for "taken" before it packs and sends again is seen."""
    transport = join_two_served()
    if RANK == 0:
        buffer = transport.send_buffers(8)[0]
        transport.send(1, 0, buffer)
        try:
            transport.send(1, 1, buffer)
            raise AssertionError("a buffer under way was sent")
        except TransportError as error:
            assert str(error).startswith("trainer rank 0 reused send buffer 0 before engine 0 had taken"), error
        transport._under_way.clear()
        transport.send(1, 1, buffer)
        assert transport.collect(1, 0, 4) == b"seen"
    else:
        arrival = transport.receive(0, 0, None, 8)
        arrival.wait()
        time.sleep(1.0)  # as slow as it must be for the fault to matter
        try:
            arrival.release()
            raise AssertionError("a buffer that was packed over was landed")
        except TransportError as error:
            assert str(error).startswith("trainer rank 0 reused its send buffer 0 before engine 0 had taken"), error
        transport.post(0, 0, b"seen")
    transport.close()


def join_two_served():
    return shm.join(store_of_all(), RANK, 2, timeout_s=20, names=peer_names(1, 1))


if __name__ == "__main__":
    cases = (stream, lost, links, exposed, careless)
    {case.__name__: case for case in cases}[sys.argv[1]](*sys.argv[2:])
