"""Ranks that are threads of one process."""

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import Empty, Queue

import torch

from megatron_spell.bridge.transports.base import Party, TransportError, check_receive, plain_buffers


@dataclass(slots=True, eq=False)
class _Message:
    """A sent buffer, not copied before the receiver takes it."""

    buffer: torch.Tensor
    party: Party
    what: str
    taken: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        if not self.taken.wait(self.party.timeout_s):
            raise self.party.waited(self.what)


@dataclass(slots=True, eq=False)
class _Arrival:
    transport: "MemoryTransport"
    src: int
    tag: int
    buffer: torch.Tensor | None
    num_bytes: int
    message: _Message | None = None

    def wait(self) -> torch.Tensor:
        party = self.transport.party
        message: _Message = self.transport.next_of(("data", self.src, party.rank, self.tag), self._what)
        party.check_length(self.src, self.tag, message.buffer.numel(), self.num_bytes)
        self.message = message
        if self.buffer is None:
            return message.buffer
        self.buffer.copy_(message.buffer)
        message.taken.set()
        return self.buffer

    def release(self) -> None:
        if self.message is None:
            raise TransportError(f"{self.transport.party.me} released {self._what} before it waited for it")
        self.message.taken.set()

    @property
    def _what(self) -> str:
        return self.transport.party.message(self.src, self.tag, self.num_bytes)


class MemoryHub:
    """Where the threads meet: `hub.transport(rank)` gives each its end.

    With `brings_memory` receivers read the sender's buffer itself, as over shared memory; else it is copied, as over a
    network.
    """

    def __init__(self, timeout_s: float = 60.0, names: Mapping[int, str] | None = None, *, brings_memory: bool = False):
        self.timeout_s, self.names, self.brings_memory = timeout_s, names, brings_memory
        self._lock = threading.Lock()
        self._queues: dict[tuple[str, int, int, int], Queue] = defaultdict(Queue)

    def queue(self, key: tuple[str, int, int, int]) -> Queue:
        """Messages of (kind, source, target, tag) in the order they were sent."""
        with self._lock:
            return self._queues[key]

    def transport(self, rank: int) -> "MemoryTransport":
        return MemoryTransport(self, rank)


class MemoryTransport:
    """One rank's end. As on a network, a buffer is read only when the peer receives."""

    def __init__(self, hub: MemoryHub, rank: int):
        self.rank, self.brings_memory = rank, hub.brings_memory
        self.party = Party(rank, 0, hub.timeout_s, hub.names)
        self._hub = hub

    def send_buffers(self, num_bytes: int) -> list[torch.Tensor]:
        return plain_buffers(num_bytes)

    def send(self, dst: int, tag: int, buffer: torch.Tensor) -> _Message:
        message = _Message(buffer, self.party, self.party.taking(dst, tag, buffer.numel()))
        self._hub.queue(("data", self.rank, dst, tag)).put(message)
        return message

    def receive(self, src: int, tag: int, buffer: torch.Tensor | None, num_bytes: int) -> _Arrival:
        buffer = None if self.brings_memory else check_receive(buffer, num_bytes)
        return _Arrival(self, src, tag, buffer, num_bytes)

    def post(self, dst: int, tag: int, message: bytes) -> None:
        self._hub.queue(("control", self.rank, dst, tag)).put(message)

    def collect(self, src: int, tag: int, num_bytes: int) -> bytes:
        what = self.party.message(src, tag, num_bytes, "control message")
        message = self.next_of(("control", src, self.rank, tag), what)
        self.party.check_length(src, tag, len(message), num_bytes, "control message")
        return message

    def next_of(self, key: tuple[str, int, int, int], what: str):
        """The next message of that kind, source, target and tag. Raises TransportTimeout."""
        try:
            return self._hub.queue(key).get(timeout=self.party.timeout_s)
        except Empty:
            raise self.party.waited(what) from None

    def close(self) -> None:
        """Nothing to let go of."""
