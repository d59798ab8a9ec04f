"""What the executor asks of a transport: move bytes between two ranks, within a time limit.

A transport is used by one thread at a time. Every rank walks one total order of messages; two may be under way on
each side. After an error a transport is of no more use: close it and meet again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_spell.bridge.boxes import BridgeError

DEFAULT_TIMEOUT_S = 120.0
NUM_SEND_BUFFERS = 2  # one is packed while the other is on its way
MAX_TAG = 2**28  # tags are below it, in each tag space


class TransportError(BridgeError):
    """A peer was lost; one line naming it and what was waited for. The transport must be closed and made anew."""


class TransportTimeout(TransportError):
    """A peer did not answer within the time limit."""


class Pending(Protocol):
    """A send under way; its buffer must not change before `wait` returns."""

    def wait(self) -> None:
        """Block until the buffer is free again, for work on the caller's current CUDA stream if it is on a GPU.

        Raises TransportError, TransportTimeout.
        """
        ...


class Arrival(Protocol):
    """A receive under way."""

    def wait(self) -> torch.Tensor:
        """uint8 [num_bytes], good until `release`: the buffer that was given, filled, or the sender's own memory.

        Use what is returned: a transport may bring memory from one peer and fill buffers from another. It must not be
        written to. On a GPU it is good for work on the caller's current stream.

        Raises TransportError, TransportTimeout.
        """
        ...

    def release(self) -> None:
        """The bytes have landed (on a GPU: the work that reads them is on the current stream); call it once."""
        ...


class Transport(Protocol):
    """Messages between ranks. A message is known by source, target and tag, 0 <= tag < MAX_TAG; of several messages
    with one tag the first sent is the first received. With `brings_memory` receives need no buffer, from any peer."""

    rank: int
    brings_memory: bool

    def send_buffers(self, num_bytes: int) -> list[torch.Tensor]:
        """The NUM_SEND_BUFFERS buffers, uint8 [num_bytes], that this rank packs into. A second call replaces them."""
        ...

    def send(self, dst: int, tag: int, buffer: torch.Tensor) -> Pending:
        """Begin to send a contiguous uint8 tensor, which starts where one of `send_buffers` does; returns at once."""
        ...

    def receive(self, src: int, tag: int, buffer: torch.Tensor | None, num_bytes: int) -> Arrival:
        """Begin to receive `num_bytes` bytes into `buffer`, uint8 [num_bytes] and contiguous; returns at once."""
        ...

    def post(self, dst: int, tag: int, message: bytes) -> None:
        """Send a small message (receipts, verdicts) without waiting until it is collected; its tags are apart from
        those of data."""
        ...

    def collect(self, src: int, tag: int, num_bytes: int) -> bytes:
        """Wait for a posted message of `num_bytes` bytes. Raises TransportError, TransportTimeout."""
        ...

    def close(self) -> None:
        """Let go of connections and memory. May be called twice and after an error; raises nothing."""
        ...


def peer_names(num_trainers: int, num_engines: int) -> dict[int, str]:
    """Names for error messages where trainers are the first ranks and engines follow."""
    engines = {num_trainers + i: f"engine {i}" for i in range(num_engines)}
    return {rank: f"trainer rank {rank}" for rank in range(num_trainers)} | engines


def peer_name(names: Mapping[int, str] | None, rank: int) -> str:
    return (names or {}).get(rank, f"rank {rank}")


@dataclass(frozen=True, slots=True)
class Party:
    """Who meets, as one rank sees it: whom errors name and how long it waits."""

    rank: int
    size: int
    timeout_s: float = DEFAULT_TIMEOUT_S
    names: Mapping[int, str] | None = None

    @property
    def me(self) -> str:
        return peer_name(self.names, self.rank)

    def name(self, rank: int) -> str:
        return peer_name(self.names, rank)

    def message(self, src: int, tag: int, num_bytes: int, kind: str = "message") -> str:
        """What a receiver waits for."""
        return f"{kind} {tag} ({num_bytes} bytes) from {self.name(src)}"

    def taking(self, dst: int, tag: int, num_bytes: int, kind: str = "message") -> str:
        """What a sender waits for."""
        return f"{self.name(dst)} to take {kind} {tag} ({num_bytes} bytes)"

    def waited(self, what: str) -> TransportTimeout:
        return TransportTimeout(f"{self.me} waited {self.timeout_s:g} s for {what}")

    def lost(self, peer: int, what: str, why: str) -> TransportError:
        return TransportError(f"{self.me} lost {self.name(peer)} waiting for {what}: {one_line(why)}")

    def check_length(self, src: int, tag: int, sent: int, wanted: int, kind: str = "message") -> None:
        """Raises TransportError where a message has another length than was agreed."""
        if sent != wanted:
            raise TransportError(
                f"{self.me}: {kind} {tag} from {self.name(src)} has {sent} bytes, expected were {wanted}"
            )


def one_line(error: object) -> str:
    """The beginning of a foreign error's text, without line breaks."""
    return " ".join(str(error).split())[:160]


def check_receive(buffer: torch.Tensor | None, num_bytes: int) -> torch.Tensor:
    """`buffer` where a transport fills buffers. Raises TransportError."""
    if buffer is None:
        raise TransportError("this transport fills buffers, receive() got none; brings_memory tells which do not")
    if buffer.numel() != num_bytes:
        raise TransportError(f"a message of {num_bytes} bytes does not fit a buffer of {buffer.numel()}")
    return buffer


def plain_buffers(num_bytes: int, device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """Send buffers where any memory will do."""
    return [torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(NUM_SEND_BUFFERS)]
