"""What the executor asks of a transport: move bytes between two ranks, within a time limit."""

from collections.abc import Mapping
from typing import Protocol

import torch

from megatron_spell.bridge.boxes import BridgeError


class TransportError(BridgeError):
    """A peer was lost; one line naming it and what was waited for. The transport must be closed and made anew."""


class TransportTimeout(TransportError):
    """A peer did not answer within the time limit."""


class Pending(Protocol):
    """A send under way; its buffer must not change before `wait` returns."""

    def wait(self) -> None:
        """Block until the buffer is free again. Raises TransportError."""


class Transport(Protocol):
    """Messages between ranks. A message is known by source, target and tag; `buffer` is a contiguous uint8 tensor."""

    rank: int

    def send(self, dst: int, tag: int, buffer: torch.Tensor) -> Pending:
        """Begin to send; may return before the peer has anything."""
        ...

    def receive(self, src: int, tag: int, buffer: torch.Tensor) -> None:
        """Fill `buffer` with that message. Raises TransportError, TransportTimeout."""
        ...

    def close(self) -> None: ...


def peer_names(num_trainers: int, num_engines: int) -> dict[int, str]:
    """Names for error messages where trainers are the first ranks and engines follow."""
    engines = {num_trainers + i: f"engine {i}" for i in range(num_engines)}
    return {rank: f"trainer rank {rank}" for rank in range(num_trainers)} | engines


def peer_name(names: Mapping[int, str] | None, rank: int) -> str:
    return (names or {}).get(rank, f"rank {rank}")
