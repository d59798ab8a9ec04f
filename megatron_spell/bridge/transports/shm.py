"""Shared memory between processes of one host.

Windows are memory files (memfd) without a name: nothing in /dev/shm can be left behind or be too small, and the memory
goes when the last process that uses it does.
"""

import fcntl
import mmap
import os
import weakref
from collections.abc import Collection, Mapping
from typing import Any

import torch

from megatron_spell.bridge.transports.base import DEFAULT_TIMEOUT_S, Party, TransportError, one_line
from megatron_spell.bridge.transports.meeting import Meeting, Store
from megatron_spell.bridge.transports.sockets import connect
from megatron_spell.bridge.transports.windows import WindowTransport

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # a file cut short would kill its readers
_ALIGN_BYTES = 64


class NoFence:
    """The CPU needs none: what is told over a socket was done before."""

    handle = ""

    def mark(self) -> None:
        """Nothing to mark."""

    def follow(self) -> None:
        """Nothing to wait for."""


class SharedMemory:
    """Memory files of this process, and those of others that it sees."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}  # where a file is mapped -> its descriptor

    def allocate(self, num_bytes: int) -> torch.Tensor:
        fd = os.memfd_create("megatron-spell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, max(1, num_bytes))
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            mapping = _map(fd, max(1, num_bytes))
        except OSError as error:
            os.close(fd)
            raise TransportError(f"no {num_bytes} bytes of shared memory to be had: {one_line(error)}") from None
        whole = torch.frombuffer(mapping, dtype=torch.uint8)
        self._fds[whole.data_ptr()] = fd
        # the address is another's once the mapping is gone
        weakref.finalize(mapping, self._close_file, whole.data_ptr()).atexit = False
        return whole[:num_bytes]

    def like(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies of `tensors` that can be exposed, all in one file."""
        offsets, num_bytes = {}, 0
        for name, tensor in tensors.items():
            offsets[name] = num_bytes
            num_bytes += -(-tensor.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
        whole = self.allocate(num_bytes)
        copies = {}
        for name, tensor in tensors.items():
            place = whole[offsets[name] : offsets[name] + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            copies[name] = place.copy_(tensor.detach())
        return copies

    def drop(self, tensor: torch.Tensor) -> None:
        self._close_file(tensor.untyped_storage().data_ptr())

    def show(self, tensor: torch.Tensor) -> tuple[dict[str, Any], list[int]]:
        storage = tensor.untyped_storage()
        fd = self._fds.get(storage.data_ptr())
        if fd is None:
            shape = tuple(tensor.shape)
            raise TransportError(f"a tensor of shape {shape} is not in shared memory; make it with SharedMemory.like")
        return {"num_bytes": storage.nbytes()}, [fd]

    def see(self, record: dict[str, Any], fds: list[int]) -> torch.Tensor:
        fd, num_bytes = fds.pop(0), int(record["num_bytes"])
        try:
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            if not sealed or os.fstat(fd).st_size < num_bytes:
                raise TransportError(f"a memory file that was sent is not a sealed one of {num_bytes} bytes")
            return torch.frombuffer(_map(fd, num_bytes), dtype=torch.uint8)
        except OSError as error:
            raise TransportError(f"cannot map {num_bytes} bytes of a peer's memory: {one_line(error)}") from None
        finally:
            os.close(fd)

    def forget(self, record: dict[str, Any]) -> None:
        """The kernel does."""

    def make_fence(self) -> NoFence:
        return NoFence()

    def open_fence(self, handle: str) -> NoFence:
        return NoFence()

    def close(self) -> None:
        """Close the files; tensors on them stay good."""
        for address in list(self._fds):
            self._close_file(address)

    def _close_file(self, address: int) -> None:
        fd = self._fds.pop(address, None)
        if fd is not None:
            os.close(fd)


def _map(fd: int, num_bytes: int) -> mmap.mmap:
    """A file's memory, with its pages; it lives as long as a tensor on it."""
    return mmap.mmap(fd, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)


def join(
    store: Store,
    rank: int,
    size: int,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    names: Mapping[int, str] | None = None,
    session: str = "bridge",
    peers: Collection[int] | None = None,
) -> WindowTransport:
    """Connect with `peers` (default: all others), which must be on this host; all `size` ranks must call.

    Raises TransportTimeout naming who did not come.
    """
    meeting = Meeting(store, session, Party(rank, size, timeout_s, names))
    others = set(range(size) if peers is None else peers) - {rank}
    return WindowTransport(connect(meeting, others), SharedMemory(), store)
