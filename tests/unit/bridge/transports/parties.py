"""Ranks of a transport as threads of the test's process."""

import threading
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from megatron_spell.bridge.transports import gloo, memory, shm
from megatron_spell.bridge.transports.base import Transport, peer_names
from tests.unit.bridge.transports import polled_group

NAMES = peer_names(1, 2)  # trainer rank 0, engine 0, engine 1
KINDS = ("memory", "borrowed memory", "gloo", "shm", "polled")  # the last is NCCL's transport


def run(parts: Sequence[Callable[[], object]], timeout_s: float = 30.0) -> list:
    """Run each part in a thread of its own; their results in order. Raises the first part's exception, if any did."""
    results: list = [None] * len(parts)
    errors: list[tuple[int, BaseException]] = []

    def one(index: int) -> None:
        try:
            results[index] = parts[index]()
        except BaseException as error:  # handed to the test's thread
            errors.append((index, error))

    threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
        assert not thread.is_alive(), f"a part was not done after {timeout_s} s"
    if errors:
        raise min(errors, key=lambda pair: pair[0])[1]
    return results


def meet(kind: str, size: int, timeout_s: float = 10.0) -> list[Transport]:
    """The ends of `size` ranks that have met."""
    if kind in ("memory", "borrowed memory"):
        hub = memory.MemoryHub(timeout_s, NAMES, brings_memory=kind != "memory")
        return [hub.transport(rank) for rank in range(size)]
    store, how = dist.HashStore(), {"timeout_s": timeout_s, "names": NAMES}
    ways = {
        "gloo": lambda rank: gloo.join(store, rank, size, address="127.0.0.1", **how),
        "shm": lambda rank: shm.join(store, rank, size, **how),
        "polled": lambda rank: polled_group.join(store, rank, size, **how),
    }
    return run([lambda rank=rank: ways[kind](rank) for rank in range(size)])


def filled(num_bytes: int, seed: int) -> torch.Tensor:
    """uint8 [num_bytes] that tells from which seed it is."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=generator)


def room(transport: Transport, num_bytes: int) -> torch.Tensor | None:
    """A receive buffer where the transport needs one."""
    return None if transport.brings_memory else torch.empty(num_bytes, dtype=torch.uint8)
