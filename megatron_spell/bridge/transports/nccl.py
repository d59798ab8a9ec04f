"""NCCL between GPUs, with a process group of its own; control messages go over gloo beside it.

NCCL knows no tags: of two ranks each takes the other's messages in the order in which they were sent, which is the one
total order that the executor walks. A tag is only for error messages.

Torch's watchdog would end the whole process when an operation runs out of time, and an engine that hangs must not take
its trainer along; so the group is made without one (blocking wait) and its operations are watched here. Source:
ProcessGroupNCCL.cpp of torch 2.11 to 2.13. Not run on a GPU yet; see tests/gpu/test_transports_cuda.py.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from time import monotonic, sleep

import torch
import torch.distributed as dist

from megatron_spell.bridge.transports import gloo
from megatron_spell.bridge.transports.base import (
    DEFAULT_TIMEOUT_S,
    Party,
    TransportError,
    one_line,
    plain_buffers,
)
from megatron_spell.bridge.transports.gloo import GroupTransport
from megatron_spell.bridge.transports.ipc import cuda_device
from megatron_spell.bridge.transports.meeting import PrefixStore, Store

_POLL_S = 50e-6
_END_S = 10.0
_BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"


class NcclTransport(GroupTransport):
    """Data over `group`, whose works tell when they are completed, on buffers of `device`; the rest over `control`."""

    def __init__(self, group, control: GroupTransport, device: torch.device):
        super().__init__(group, timeout_s=control.party.timeout_s, names=control.party.names)
        self._control, self._device = control, device

    def send_buffers(self, num_bytes: int) -> list[torch.Tensor]:
        return plain_buffers(num_bytes, self._device)

    def post(self, dst: int, tag: int, message: bytes) -> None:
        self._control.post(dst, tag, message)

    def collect(self, src: int, tag: int, num_bytes: int) -> bytes:
        return self._control.collect(src, tag, num_bytes)

    def close(self) -> None:
        """End the communicators, in order where nothing broke; else work under way is given up."""
        group, self._group = self._group, None
        self._control.close()
        if group is not None and (self._is_broken or not _ends_soon(group.shutdown)):
            _ends_soon(group.abort)

    def finish(self, work: dist.Work) -> bool:
        """Watch `work` until it is done; then the current stream comes after it. Raises RuntimeError."""
        deadline = monotonic() + self.party.timeout_s
        while not work.is_completed():
            if monotonic() > deadline:
                if self._group is not None:
                    _ends_soon(self._group.abort)  # its kernels would wait for the peer for ever
                raise RuntimeError("Timed out")
            sleep(_POLL_S)
        return work.wait()

    def make_contact(self) -> None:
        """Connect every pair of ranks, in one order: NCCL connects at the first message, without a time limit."""
        for low in range(self.party.size):
            for high in range(low + 1, self.party.size):
                if self.rank in (low, high):
                    self._touch(high if self.rank == low else low)

    def _touch(self, peer: int) -> None:
        token = torch.zeros(1, dtype=torch.uint8, device=self._device)
        what = f"{self.party.name(peer)} to connect over NCCL"

        def touch() -> None:
            work = self._begin("send" if self.rank < peer else "recv", token, peer, 0, what)
            work.wait()

        within(self.party, what, touch)


def join(
    store: Store,
    rank: int,
    size: int,
    *,
    device: torch.device | str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    names: Mapping[int, str] | None = None,
    session: str = "bridge",
    address: str | None = None,
) -> NcclTransport:
    """Build the groups of `size` ranks over `store`, each rank on a GPU of its own; see gloo.join for the settings.

    Raises TransportError, TransportTimeout naming who did not come.
    """
    device = cuda_device(device)
    how = {"timeout_s": timeout_s, "names": names, "session": session, "address": address}
    control = gloo.join(store, rank, size, **how)
    transport = None
    try:
        group = _make_group(PrefixStore(f"{session}/nccl", store), control.party)
        transport = NcclTransport(group, control, device)
        with torch.cuda.device(device):
            transport.make_contact()
        return transport
    except BaseException:
        (transport or control).close()
        raise


def within(party: Party, what: str, action: Callable[[], None]) -> None:
    """Run what knows no time limit in a thread, on this thread's GPU, and give up waiting for it at the party's limit.

    Raises TransportTimeout for `what`, or what `action` raised.
    """
    errors: list[BaseException] = []
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            action()
        except BaseException as error:  # raised in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="bridge connects", daemon=True)
    thread.start()
    thread.join(party.timeout_s)
    if thread.is_alive():
        raise party.waited(what)
    if errors:
        raise errors[0]


def _make_group(store: Store, party: Party):
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=party.timeout_s)
    try:
        with _environment(_BLOCKING_WAIT, "1"):
            return dist.ProcessGroupNCCL(store, party.rank, party.size, options)
    except (RuntimeError, ValueError) as error:
        raise TransportError(f"{party.me} could not make an NCCL group: {one_line(error)}") from None


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """torch reads this when the group is made, and has no other way to say it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _ends_soon(action: Callable[[], None]) -> bool:
    """Do it, and say whether it was done within some seconds: ending what is broken may itself hang."""
    done = threading.Event()

    def run() -> None:
        with suppress(RuntimeError):
            action()
            done.set()

    threading.Thread(target=run, name="bridge disconnects", daemon=True).start()
    return done.wait(_END_S)
