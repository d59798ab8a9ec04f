"""CUDA IPC: processes that share one GPU. Bytes are packed and landed on the device and never touch the host.

Facts of torch's side (StorageSharing.cpp, CudaIPCTypes.cpp of torch 2.11 to 2.13) that this rests on: a shown storage
keeps its place; each showing has a reference count of its own for one process, which gives it back when it lets go of
the storage; memory whose count was not given back is never freed, so for a process that died it is given back here.
Handles cannot be opened in the process that made them. Not run on a GPU yet; see tests/gpu/test_transports_cuda.py.
"""

from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch

from megatron_spell.bridge.transports.base import DEFAULT_TIMEOUT_S, Party, TransportError, one_line
from megatron_spell.bridge.transports.meeting import Meeting, Store
from megatron_spell.bridge.transports.sockets import connect
from megatron_spell.bridge.transports.windows import WindowTransport


class EventFence:
    """A CUDA event that two processes know. It is marked by the one that made it and followed by the other.

    A token is sent after each mark and before the other side follows, so following always finds the mark it is about.
    """

    def __init__(self, device: torch.device, handle: str | None = None):
        self._device = device
        with torch.cuda.device(device):
            if handle is None:
                self._event = torch.cuda.Event(interprocess=True)
                handle = b64encode(self._event.ipc_handle()).decode()
            else:
                self._event = torch.cuda.Event.from_ipc_handle(device, b64decode(handle))
        self.handle = handle

    def mark(self) -> None:
        self._event.record(torch.cuda.current_stream(self._device))

    def follow(self) -> None:
        self._event.wait(torch.cuda.current_stream(self._device))


class CudaMemory:
    """Memory of one GPU. Source: torch.multiprocessing.reductions uses the same calls of UntypedStorage."""

    def __init__(self, device: torch.device):
        self.device = device
        self._uuid = device_uuid(device)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        try:
            return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        except RuntimeError as error:
            raise TransportError(f"no {num_bytes} bytes to be had on {self.device}: {one_line(error)}") from None

    def drop(self, tensor: torch.Tensor) -> None:
        """Freed with its last reference, here or in a process that sees it."""

    def show(self, tensor: torch.Tensor) -> tuple[dict[str, Any], list[int]]:
        if tensor.device != self.device:
            shape = tuple(tensor.shape)
            raise TransportError(
                f"a tensor of shape {shape} is on {tensor.device}, CUDA IPC was set up on {self.device}"
            )
        try:
            _, handle, num_bytes, offset, counter, counter_offset, event, has_event = (
                tensor.untyped_storage()._share_cuda_()
            )
        except RuntimeError as error:
            raise TransportError(f"cannot show memory of {self.device} by CUDA IPC: {one_line(error)}") from None
        record = {
            "uuid": self._uuid,
            "handle": b64encode(handle).decode(),
            "num_bytes": num_bytes,
            "offset": offset,
            "counter": b64encode(counter).decode(),
            "counter_offset": counter_offset,
            "event": b64encode(event).decode(),
            "has_event": has_event,
        }
        return record, []

    def see(self, record: dict[str, Any], fds: list[int]) -> torch.Tensor:
        if record["uuid"] != self._uuid:
            raise TransportError(f"a peer's memory is on GPU {record['uuid']}, this rank uses GPU {self._uuid}")
        torch.cuda.init()
        try:
            storage = torch.UntypedStorage._new_shared_cuda(
                self.device.index,  # the same GPU may have another number in the peer's process
                b64decode(record["handle"]),
                record["num_bytes"],
                record["offset"],
                b64decode(record["counter"]),
                record["counter_offset"],
                b64decode(record["event"]),
                record["has_event"],
            )
        except RuntimeError as error:
            why = f"{one_line(error)}; memory of expandable segments may not open in another process"
            raise TransportError(f"cannot open a peer's memory on {self.device}: {why}") from None
        return torch.empty(0, dtype=torch.uint8, device=self.device).set_(storage)

    def forget(self, record: dict[str, Any]) -> None:
        with suppress(RuntimeError):  # its counters may be gone already
            torch.UntypedStorage._release_ipc_counter_cuda(b64decode(record["counter"]), record["counter_offset"])

    def make_fence(self) -> EventFence:
        return EventFence(self.device)

    def open_fence(self, handle: str) -> EventFence:
        return EventFence(self.device, handle)

    def close(self) -> None:
        """Give back what no process sees any more."""
        torch.cuda.ipc_collect()


def device_uuid(device: torch.device) -> str:
    """What tells a GPU from all others, whatever its number is in this process."""
    return str(torch.cuda.get_device_properties(device).uuid)


def cuda_device(device: torch.device | str | None = None) -> torch.device:
    """That GPU with its number, the current one for None. Raises TransportError where there is none."""
    if not torch.cuda.is_available():
        raise TransportError("transport cuda_ipc and nccl need CUDA, and this process sees no GPU; use shm or gloo")
    wanted = torch.device("cuda" if device is None else device)
    if wanted.type != "cuda":
        raise TransportError(f"transport cuda_ipc and nccl need a CUDA device, not {wanted}; use shm or gloo")
    return wanted if wanted.index is not None else torch.device("cuda", torch.cuda.current_device())


def join(
    store: Store,
    rank: int,
    size: int,
    *,
    device: torch.device | str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    names: Mapping[int, str] | None = None,
    session: str = "bridge",
    peers: Collection[int] | None = None,
) -> WindowTransport:
    """Connect with `peers` (default: all others), processes of this host on the same GPU; all `size` ranks must call.

    Raises TransportError, TransportTimeout naming who did not come.
    """
    memory = CudaMemory(cuda_device(device))
    meeting = Meeting(store, session, Party(rank, size, timeout_s, names))
    others = set(range(size) if peers is None else peers) - {rank}
    return WindowTransport(connect(meeting, others), memory, store)
