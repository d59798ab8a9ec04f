"""Gloo over TCP, with a process group of its own or over a group that exists.

The own group is built on a store directly: it needs no default process group and disturbs none, because a receiver may
live in a process whose groups belong to someone else.
"""

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

import torch
import torch.distributed as dist

from megatron_spell.bridge.transports.base import (
    DEFAULT_TIMEOUT_S,
    MAX_TAG,
    Party,
    TransportError,
    check_receive,
    one_line,
    plain_buffers,
)
from megatron_spell.bridge.transports.meeting import Meeting, open_store

__all__ = ["DEFAULT_TIMEOUT_S", "GlooTransport", "GroupTransport", "join", "open_store", "rendezvous"]

_CONTROL_TAGS = MAX_TAG  # posted messages have the tags from here on; gloo tells tags apart in 31 bits
_MAX_POSTS_UNDER_WAY = 1024  # more than a refresh posts, so that two ranks never wait for each other here


@dataclass(slots=True, eq=False)
class _Pending:
    work: dist.Work
    transport: "GroupTransport"
    what: str
    peer: int

    def wait(self) -> None:
        self.transport.wait(self.work, self.what, self.peer)


@dataclass(slots=True, eq=False)
class _Arrival:
    pending: _Pending
    buffer: torch.Tensor

    def wait(self) -> torch.Tensor:
        self.pending.wait()
        return self.buffer

    def release(self) -> None:
        """The buffer is the caller's own."""


class GroupTransport:
    """A transport over a gloo process group; ranks are the group's. After an error the group is of no more use.

    Source: torch's ProcessGroupGloo matches sends and receives of a pair by tag, and a wait that runs out closes all
    its connections, so every later wait fails at once.
    """

    brings_memory = False

    def __init__(
        self,
        group: dist.ProcessGroup | dist.ProcessGroupGloo,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        names: Mapping[int, str] | None = None,
    ):
        self.rank: int = group.rank()
        self.party = Party(self.rank, group.size(), timeout_s, names)
        self._group = group
        self._posts: deque[_Pending] = deque()
        self._is_broken = False

    def send_buffers(self, num_bytes: int) -> list[torch.Tensor]:
        return plain_buffers(num_bytes)

    def send(self, dst: int, tag: int, buffer: torch.Tensor) -> _Pending:
        what = self.party.taking(dst, tag, buffer.numel())
        return self._begin("send", buffer, dst, tag, what)

    def receive(self, src: int, tag: int, buffer: torch.Tensor | None, num_bytes: int) -> _Arrival:
        buffer, what = check_receive(buffer, num_bytes), self.party.message(src, tag, num_bytes)
        return _Arrival(self._begin("recv", buffer, src, tag, what), buffer)

    def post(self, dst: int, tag: int, message: bytes) -> None:
        """See Transport. A send of gloo's ends when the peer has it, so posts are seen to later, at the latest in
        `close`; when too many are under way this waits for the first of them."""
        while len(self._posts) >= _MAX_POSTS_UNDER_WAY:
            self._posts.popleft().wait()
        what = self.party.taking(dst, tag, len(message), "control message")
        content = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        self._posts.append(self._begin("send", content, dst, _CONTROL_TAGS + tag, what))

    def collect(self, src: int, tag: int, num_bytes: int) -> bytes:
        content = torch.empty(num_bytes, dtype=torch.uint8)
        what = self.party.message(src, tag, num_bytes, "control message")
        self._begin("recv", content, src, _CONTROL_TAGS + tag, what).wait()
        return content.numpy().tobytes()

    def close(self) -> None:
        """Leave the group; one that was given stays its owner's. Posts under way are waited for within the limit."""
        with suppress(TransportError):  # who should have collected says what it missed
            while self._posts and not self._is_broken:
                self._posts.popleft().wait()
        self._posts.clear()
        self._group = None

    def wait(self, work: dist.Work, what: str, peer: int) -> None:
        """Wait for `work` of this group. Raises TransportError naming `peer`."""
        try:
            finished = self.finish(work)
        except RuntimeError as error:
            raise self._lost(error, what, peer) from None
        if not finished:
            raise self._lost(RuntimeError("it was aborted"), what, peer)

    def finish(self, work: dist.Work) -> bool:
        """Wait within the limit; False when the work was given up. Raises RuntimeError."""
        return work.wait(timedelta(seconds=self.party.timeout_s))

    def _begin(self, verb: str, buffer: torch.Tensor, peer: int, tag: int, what: str) -> _Pending:
        if self._group is None:
            raise TransportError(f"{self.party.me} has closed its transport and cannot wait for {what}")
        try:
            return _Pending(getattr(self._group, verb)([buffer], peer, tag), self, what, peer)
        except RuntimeError as error:
            raise self._lost(error, what, peer) from None

    def _lost(self, error: RuntimeError, what: str, peer: int) -> TransportError:
        self._is_broken = True
        if "Timed out" in str(error):
            return self.party.waited(what)
        return self.party.lost(peer, what, str(error))


class GlooTransport(GroupTransport):
    """A transport with its own group; made by `join`, or by `rendezvous` where no store is at hand."""

    def __init__(self, group: dist.ProcessGroupGloo, store: dist.Store, **settings):
        super().__init__(group, **settings)
        self._store = store  # rank 0's store serves the others

    def close(self) -> None:
        super().close()
        self._store = None


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
    return join(store, rank, size, timeout_s=timeout_s, names=names, session=session, address=loopback(host))


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
    party = Party(rank, size, timeout_s, names)
    meeting = Meeting(store, session, party)
    meeting.roll_call("arrived")
    try:
        group_store = dist.PrefixStore("group", meeting.store)
        group = dist.ProcessGroupGloo(group_store, rank, size, _options(timeout_s, address))
    except RuntimeError as error:
        raise TransportError(f"{party.me} could not connect to its peers: {one_line(error)}") from None
    # a rank that has its group must not take the store away from one that still connects
    meeting.roll_call("connected")
    return GlooTransport(group, store, timeout_s=timeout_s, names=names)


def _options(timeout_s: float, address: str | None):
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=timeout_s)
    device = dist.ProcessGroupGloo.create_device
    options._devices = [device(hostname=address) if address else dist.ProcessGroupGloo.create_default_device()]
    return options


def loopback(host: str) -> str | None:
    """Ranks that meet on a loopback address are all on this machine and connect there too."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        return host if ip_address(host).is_loopback else None
    except ValueError:
        return None
