import os
import socket

import pytest
import torch.distributed as dist

from megatron_spell.bridge.transports import sockets
from megatron_spell.bridge.transports.base import Party, TransportError, TransportTimeout
from megatron_spell.bridge.transports.meeting import Meeting
from megatron_spell.bridge.transports.sockets import Kind, connect
from tests.unit.bridge.transports.parties import NAMES, filled, run


def connect_two(timeout_s: float = 5.0, size: int = 2) -> list:
    store = dist.HashStore()

    def one(rank: int):
        return connect(Meeting(store, "sockets", Party(rank, size, timeout_s, NAMES)), set(range(size)) - {rank})

    return run([lambda rank=rank: one(rank) for rank in range(size)])


def test_large_messages_both_ways_at_once():
    """More than the sockets hold: each side takes in while it waits for room."""
    ends, content = connect_two(), filled(3_000_000, 1).numpy().tobytes()

    def part(rank: int) -> bytes:
        ends[rank].send(1 - rank, Kind.POST, 0, content, what="room")
        return ends[rank].next(1 - rank, Kind.POST, 0, "content").content

    assert run([lambda: part(0), lambda: part(1)]) == [content, content]
    for end in ends:
        end.close()


def test_descriptors_go_along_in_order():
    ends = connect_two()
    files = [os.memfd_create(f"file{i}") for i in range(450)]
    for i, fd in enumerate(files):
        os.write(fd, i.to_bytes(2, "big"))
    ends[0].send(1, Kind.EXPOSED, 0, b"x", files, what="room")
    message = ends[1].next(0, Kind.EXPOSED, 0, "files")
    assert [int.from_bytes(os.pread(fd, 2, 0), "big") for fd in message.fds] == list(range(450))
    assert not any(os.get_inheritable(fd) for fd in message.fds)
    message.close_fds()
    for fd in files:
        os.close(fd)
    for end in ends:
        end.close()


def test_a_full_queue_is_waited_for_within_the_limit():
    ends = connect_two(timeout_s=0.3)
    with pytest.raises(TransportTimeout, match=r"^trainer rank 0 waited 0.3 s for room$"):
        ends[0].send(1, Kind.POST, 0, bytes(3_000_000), what="room")
    for end in ends:
        end.close()


def test_who_is_missing_is_named():
    store = dist.HashStore()
    with pytest.raises(TransportTimeout, match=r"^trainer rank 0 waited 0.2 s for engine 0 to join$"):
        connect(Meeting(store, "sockets", Party(0, 2, 0.2, NAMES)), {1})


def test_another_users_process_is_turned_away(monkeypatch):
    monkeypatch.setattr(sockets.os, "geteuid", lambda: os.getuid() + 1)
    store = dist.HashStore()
    with pytest.raises(TransportError, match="engine 0 was answered by another user's process in place of trainer"):
        run([lambda: connect(Meeting(store, "s", Party(1, 2, 1.0, NAMES)), {0}), lambda: serve_strangely(store)])


def serve_strangely(store) -> None:
    """A listener in rank 0's place."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        name = f"\0strange-{os.getpid()}"
        listener.bind(name.encode())
        listener.listen()
        Meeting(store, "s", Party(0, 2, 1.0, NAMES)).exchange("sockets", name)
        listener.accept()[0].close()


def test_a_stranger_does_not_take_a_ranks_place():
    """Whoever says something else than an expected rank is closed, and the rank still gets in."""
    store = dist.HashStore()
    meeting = Meeting(store, "s", Party(1, 2, 5.0, NAMES))

    def late() -> object:
        addresses = meeting.exchange("sockets", "")
        for hello in (b"x", sockets._HEADER.pack(Kind.HELLO, 0, 7), sockets._HEADER.pack(Kind.POST, 0, 1)):
            stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stranger.connect(addresses[0].encode())
            stranger.send(hello)
            assert stranger.recv(1) == b""
            stranger.close()
        connection = sockets._call(meeting, 0, addresses[0])
        meeting.roll_call("sockets connected")
        return connection

    end, connection = run([lambda: connect(Meeting(store, "s", Party(0, 2, 5.0, NAMES)), {1}), late])
    connection.send(sockets._HEADER.pack(Kind.POST, 0, 4) + b"hello")
    assert end.next(1, Kind.POST, 4, "hello").content == b"hello"
    connection.close()
    end.close()
