"""A group like NCCL's made of gloo: it knows no tags, its works are polled, and it can be aborted."""

import threading
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_spell.bridge.transports import gloo
from megatron_spell.bridge.transports.nccl import NcclTransport


class PolledWork:
    """Is completed some time after it was begun, well or not; `wait` does not wait."""

    def __init__(self, work: dist.Work):
        self._work, self._error, self._done = work, None, threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._work.wait(timedelta(seconds=30))
        except RuntimeError as error:
            self._error = error
        self._done.set()

    def is_completed(self) -> bool:
        return self._done.is_set()

    def wait(self) -> bool:
        assert self._done.wait(30), "NCCL's wait has no limit: it must not be called early"
        if self._error is not None:
            raise self._error
        return True


class PolledGroup:
    """Messages of a pair come in the order they were sent, whatever their tags."""

    def __init__(self, group: dist.ProcessGroupGloo):
        self._group, self.is_aborted, self.is_shut_down = group, False, False

    def rank(self) -> int:
        return self._group.rank()

    def size(self) -> int:
        return self._group.size()

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> PolledWork:
        return PolledWork(self._group.send(tensors, peer, 0))

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> PolledWork:
        return PolledWork(self._group.recv(tensors, peer, 0))

    def abort(self) -> None:
        self.is_aborted = True

    def shutdown(self) -> None:
        self.is_shut_down = True


def join(store: dist.Store, rank: int, size: int, **how) -> NcclTransport:
    """As nccl.join does it, but for the group."""
    control = gloo.join(store, rank, size, session="control", address="127.0.0.1", **how)
    below = gloo.join(store, rank, size, session="data", address="127.0.0.1", **how)
    transport = NcclTransport(PolledGroup(below._group), control, torch.device("cpu"))
    transport.make_contact()
    return transport
