"""Ranks that are threads of one process."""

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import Empty, Queue

import torch

from megatron_spell.bridge.transports.base import TransportError, TransportTimeout, peer_name


@dataclass(slots=True, eq=False)
class _Message:
    """A sent buffer, not copied before the receiver takes it."""

    buffer: torch.Tensor
    timeout_s: float
    what: str
    taken: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        if not self.taken.wait(self.timeout_s):
            raise TransportTimeout(f"waited {self.timeout_s:g} s for {self.what}")


class MemoryHub:
    """Where the threads meet: `hub.transport(rank)` gives each its end."""

    def __init__(self, timeout_s: float = 60.0, names: Mapping[int, str] | None = None):
        self.timeout_s, self.names = timeout_s, names
        self._lock = threading.Lock()
        self._queues: dict[tuple[int, int, int], Queue[_Message]] = defaultdict(Queue)

    def queue(self, src: int, dst: int, tag: int) -> "Queue[_Message]":
        with self._lock:
            return self._queues[src, dst, tag]

    def transport(self, rank: int) -> "MemoryTransport":
        return MemoryTransport(self, rank)


class MemoryTransport:
    """One rank's end. As on a network, a buffer is read only when the peer receives."""

    def __init__(self, hub: MemoryHub, rank: int):
        self.rank = rank
        self._hub = hub

    def send(self, dst: int, tag: int, buffer: torch.Tensor) -> _Message:
        what = f"{peer_name(self._hub.names, dst)} to take message {tag}"
        message = _Message(buffer, self._hub.timeout_s, what)
        self._hub.queue(self.rank, dst, tag).put(message)
        return message

    def receive(self, src: int, tag: int, buffer: torch.Tensor) -> None:
        peer, timeout_s = peer_name(self._hub.names, src), self._hub.timeout_s
        try:
            message = self._hub.queue(src, self.rank, tag).get(timeout=timeout_s)
        except Empty:
            raise TransportTimeout(f"waited {timeout_s:g} s for message {tag} from {peer}") from None
        if message.buffer.shape != buffer.shape:
            sent, wanted = message.buffer.numel(), buffer.numel()
            raise TransportError(f"message {tag} from {peer} has {sent} bytes, expected were {wanted}")
        buffer.copy_(message.buffer)
        message.taken.set()

    def close(self) -> None:
        """Nothing to let go of."""
