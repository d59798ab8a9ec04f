"""Gloo over TCP, with a process group of its own or over a group that exists.

The own group is built on a store directly: it needs no default process group and disturbs none, because a receiver may
live in a process whose groups belong to someone else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from time import monotonic

import torch
import torch.distributed as dist

from megatron_spell.bridge.transports.base import TransportError, TransportTimeout, peer_name

DEFAULT_TIMEOUT_S = 120.0


@dataclass(slots=True, eq=False)
class _Pending:
    work: dist.Work
    transport: "GroupTransport"
    what: str
    peer: int

    def wait(self) -> None:
        self.transport.wait(self.work, self.what, self.peer)


class GroupTransport:
    """A transport over a gloo process group; ranks are the group's. After an error the group is of no more use.

    Source: torch's ProcessGroupGloo matches sends and receives of a pair by tag, and a wait that runs out closes all
    its connections, so every later wait fails at once.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | dist.ProcessGroupGloo,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        names: Mapping[int, str] | None = None,
    ):
        self.rank: int = group.rank()
        self._group = group
        self._timeout_s, self._names = timeout_s, names

    def send(self, dst: int, tag: int, buffer: torch.Tensor) -> _Pending:
        what = f"{peer_name(self._names, dst)} to take message {tag} ({buffer.numel()} bytes)"
        return _Pending(self._begin(self._group.send, buffer, dst, tag, what), self, what, dst)

    def receive(self, src: int, tag: int, buffer: torch.Tensor) -> None:
        what = f"message {tag} ({buffer.numel()} bytes) from {peer_name(self._names, src)}"
        self.wait(self._begin(self._group.recv, buffer, src, tag, what), what, src)

    def close(self) -> None:
        """Leave the group; one that was given stays its owner's."""
        self._group = None

    def _begin(self, begin, buffer: torch.Tensor, peer: int, tag: int, what: str) -> dist.Work:
        try:
            return begin([buffer], peer, tag)
        except RuntimeError as error:
            raise self._lost(error, what, peer) from None

    def wait(self, work: dist.Work, what: str, peer: int) -> None:
        """Wait for `work` of this group. Raises TransportError naming `peer`."""
        try:
            finished = work.wait(timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            raise self._lost(error, what, peer) from None
        if not finished:
            raise TransportError(f"{self._me} lost {peer_name(self._names, peer)} waiting for {what}")

    @property
    def _me(self) -> str:
        return peer_name(self._names, self.rank)

    def _lost(self, error: RuntimeError, what: str, peer: int) -> TransportError:
        why = " ".join(str(error).split())
        if "Timed out" in why:
            return TransportTimeout(f"{self._me} waited {self._timeout_s:g} s for {what}")
        return TransportError(f"{self._me} lost {peer_name(self._names, peer)} waiting for {what}: {why[:160]}")


class GlooTransport(GroupTransport):
    """A transport with its own group; made by `join`, or by `rendezvous` where no store is at hand."""

    def __init__(self, group: dist.ProcessGroupGloo, store: dist.Store, **settings):
        super().__init__(group, **settings)
        self._store = store  # rank 0's store serves the others

    def close(self) -> None:
        super().close()
        self._store = None


def open_store(host: str, port: int, *, serve: bool, timeout_s: float = DEFAULT_TIMEOUT_S) -> dist.TCPStore:
    """The store where ranks meet. With `serve` it listens here, on a free port (see `.port`) when `port` is 0.

    Raises TransportError, TransportTimeout naming the address.
    """
    limit = timedelta(seconds=timeout_s)
    try:
        return dist.TCPStore(host, port, is_master=serve, timeout=limit, wait_for_workers=False)
    except dist.DistError as error:
        why = " ".join(str(error).split())[:160]
        if serve:
            raise TransportError(f"cannot serve a rendezvous at {host}:{port}: {why}") from None
        raise TransportTimeout(f"waited {timeout_s:g} s for a rendezvous at {host}:{port}: {why}") from None


def rendezvous(
    host: str,
    port: int,
    rank: int,
    size: int,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    names: Mapping[int, str] | None = None,
    session: str = "bridge",
) -> GlooTransport:
    """Meet `size` ranks at `host`:`port`, where rank 0 serves. Raises TransportError, TransportTimeout."""
    store = open_store(host, port, serve=rank == 0, timeout_s=timeout_s)
    return join(store, rank, size, timeout_s=timeout_s, names=names, session=session, address=_loopback(host))


def join(
    store: dist.Store,
    rank: int,
    size: int,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    names: Mapping[int, str] | None = None,
    session: str = "bridge",
    address: str | None = None,
) -> GlooTransport:
    """Build the group of `size` ranks over `store`.

    `session` keeps groups over one store apart. `address` is the local address to listen on; without it torch takes
    the one of GLOO_SOCKET_IFNAME, else of the host's name. Raises TransportTimeout naming who did not come.
    """
    own = dist.PrefixStore(session, store)
    deadline = monotonic() + timeout_s
    _meet(own, "arrived", rank, size, deadline, timeout_s, names)
    try:
        group = dist.ProcessGroupGloo(dist.PrefixStore("group", own), rank, size, _options(timeout_s, address))
    except RuntimeError as error:
        why = " ".join(str(error).split())[:160]
        raise TransportError(f"{peer_name(names, rank)} could not connect to its peers: {why}") from None
    # a rank that has its group must not take the store away from one that still connects
    _meet(own, "connected", rank, size, deadline, timeout_s, names)
    return GlooTransport(group, store, timeout_s=timeout_s, names=names)


def _options(timeout_s: float, address: str | None):
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=timeout_s)
    device = dist.ProcessGroupGloo.create_device
    options._devices = [device(hostname=address) if address else dist.ProcessGroupGloo.create_default_device()]
    return options


def _meet(
    store: dist.Store,
    stage: str,
    rank: int,
    size: int,
    deadline: float,
    timeout_s: float,
    names: Mapping[int, str] | None,
) -> None:
    try:
        store.set(f"{stage}/{rank}", "1")
        for peer in range(size):
            if not _reached(store, f"{stage}/{peer}", deadline):
                absent = ", ".join(peer_name(names, p) for p in range(size) if not store.check([f"{stage}/{p}"]))
                raise TransportTimeout(
                    f"{peer_name(names, rank)} waited {timeout_s:g} s for {absent or peer_name(names, peer)} to join"
                )
    except dist.DistError as error:
        why = " ".join(str(error).split())[:160]
        raise TransportError(f"{peer_name(names, rank)} lost the rendezvous: {why}") from None


def _reached(store: dist.Store, key: str, deadline: float) -> bool:
    try:
        store.wait([key], timedelta(seconds=max(0.001, deadline - monotonic())))
    except dist.DistStoreError:  # the time limit; a lost store is a DistNetworkError
        return False
    return True


def _loopback(host: str) -> str | None:
    """Ranks that meet on a loopback address are all on this machine and connect there too."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        return host if ip_address(host).is_loopback else None
    except ValueError:
        return None
