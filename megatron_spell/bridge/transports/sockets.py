"""Messages with file descriptors between processes of one host, over Unix sockets.

The sockets are sequenced packets: a message arrives whole or not at all, and the end of a process, however it came, is
seen as the end of its connection. Their names are abstract (Linux), so nothing is left in a file system; every peer
must be of this process's user.
"""

import os
import select
import socket
import struct
from array import array
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from math import ceil
from secrets import token_hex
from time import monotonic

from megatron_spell.bridge.transports.base import Party, TransportError, one_line
from megatron_spell.bridge.transports.meeting import Meeting

_HEADER = struct.Struct("<BBxxI")  # kind, whether more of the message follows, tag
_CREDENTIALS = struct.Struct("=iII")  # SO_PEERCRED: process, user, group
_MAX_FRAME_BYTES = 32 * 1024  # several fit a socket's default buffer
_MAX_FRAME_FDS = 200  # Linux takes 253
_FD_BYTES = array("i").itemsize


class Kind(IntEnum):
    """What a message is for; tags are told apart within a kind."""

    HELLO = 0
    POST = 1
    WINDOWS = 2
    EXPOSED = 3
    FENCES = 4
    HOLDS = 5
    TAKEN = 6


@dataclass(slots=True)
class Message:
    """Bytes, and file descriptors that are now the receiver's to close."""

    content: bytes = b""
    fds: list[int] = field(default_factory=list)

    def close_fds(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class PeerSockets:
    """One rank's connections. Used by one thread; whoever waits takes in what any peer sends meanwhile.

    A peer that ended is an error only to who waits for it: its messages sent before are still there.
    """

    def __init__(self, party: Party, sockets: dict[int, socket.socket]):
        self.party = party
        self._sockets = dict(sockets)
        self._ranks = {connection.fileno(): rank for rank, connection in sockets.items()}
        self._poll = select.poll()
        self._inbox: dict[tuple[int, Kind, int], deque[Message]] = {}
        self._parts: dict[tuple[int, Kind, int], Message] = {}
        self._ended: dict[int, str] = {}
        self._is_closed = False
        for connection in sockets.values():
            connection.setblocking(False)
            self._poll.register(connection, select.POLLIN)

    def send(
        self, peer: int, kind: Kind, tag: int, content: bytes = b"", fds: Sequence[int] = (), *, what: str
    ) -> None:
        """Send in pieces that fit. Waits only while the peer's queue is full; `what` says for what, in an error."""
        deadline = monotonic() + self.party.timeout_s
        for frame, frame_fds in _frames(kind, tag, content, fds):
            while not self._try_send(peer, frame, frame_fds, what):
                self._wait(deadline, what, writing_to=peer)

    def next(self, peer: int, kind: Kind, tag: int, what: str) -> Message:
        """The peer's next message of that kind and tag. Raises TransportError, TransportTimeout for `what`."""
        deadline = monotonic() + self.party.timeout_s
        while (message := self.pop(peer, kind, tag)) is None:
            self._check(peer, what)
            self._wait(deadline, what)
        return message

    def pop(self, peer: int, kind: Kind, tag: int = 0) -> Message | None:
        """That message, if it has been taken in."""
        queue = self._inbox.get((peer, kind, tag))
        if not queue:
            return None
        message = queue.popleft()
        if not queue:
            del self._inbox[peer, kind, tag]
        return message

    def unread(self, peer: int, kind: Kind) -> list[bytes]:
        """Contents of all that has come of a kind and was not asked for, of any tag."""
        for rank in [self._ranks[fd] for fd, _ in self._poll.poll(0)]:
            self._take_in(rank)
        return [m.content for (rank, of, _), queue in self._inbox.items() if (rank, of) == (peer, kind) for m in queue]

    def has_ended(self, peer: int) -> bool:
        """Whether the peer has closed its end or died, as far as is known without waiting."""
        if peer in self._sockets:
            self._take_in(peer)
        return peer in self._ended

    def close(self) -> None:
        for peer in list(self._sockets):  # closing with unread messages would break the peer's reading
            self._take_in(peer)
        for connection in self._sockets.values():
            connection.close()
        for message in (*self._parts.values(), *(m for queue in self._inbox.values() for m in queue)):
            message.close_fds()
        self._sockets, self._inbox, self._parts, self._is_closed = {}, {}, {}, True

    def _check(self, peer: int, what: str) -> None:
        if self._is_closed:
            raise TransportError(f"{self.party.me} has closed its transport and cannot wait for {what}")
        if peer in self._ended:
            raise self.party.lost(peer, what, self._ended[peer])
        if peer not in self._sockets:
            raise TransportError(f"{self.party.me} has no connection to {self.party.name(peer)} on this host")

    def _try_send(self, peer: int, frame: bytes, fds: Sequence[int], what: str) -> bool:
        self._check(peer, what)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self._sockets[peer].sendmsg([frame], rights, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            self._take_in(peer)  # what it said before it ended
            self._end(peer, one_line(error))
            raise self.party.lost(peer, what, self._ended[peer]) from None
        return True

    def _wait(self, deadline: float, what: str, writing_to: int | None = None) -> None:
        """Until something comes, or there may be room to write; it is taken in."""
        left_ms = ceil(1000 * (deadline - monotonic()))
        if writing_to is not None:
            self._poll.modify(self._sockets[writing_to], select.POLLIN | select.POLLOUT)
        ready = self._poll.poll(left_ms) if left_ms > 0 else []
        if writing_to is not None:
            self._poll.modify(self._sockets[writing_to], select.POLLIN)
        if not ready:
            raise self.party.waited(what)
        for rank in [self._ranks[fd] for fd, events in ready if events & ~select.POLLOUT]:
            self._take_in(rank)

    def _take_in(self, rank: int) -> None:
        """All that the peer has sent so far."""
        while rank in self._sockets:
            try:
                frame, fds = _receive(self._sockets[rank])
            except BlockingIOError:
                return
            except ConnectionResetError:  # told once; what was sent before can still be read
                continue
            except OSError as error:
                self._end(rank, one_line(error))
                return
            if not frame:
                self._end(rank, "it closed the connection")
                return
            self._sort(rank, frame, fds)

    def _sort(self, rank: int, frame: bytes, fds: list[int]) -> None:
        kind, has_more, tag = _HEADER.unpack_from(frame)
        key = (rank, Kind(kind), tag)
        message = self._parts.pop(key, None) or Message()
        message.content += frame[_HEADER.size :]
        message.fds += fds
        if has_more:
            self._parts[key] = message
        else:
            self._inbox.setdefault(key, deque()).append(message)

    def _end(self, rank: int, why: str) -> None:
        self._ended.setdefault(rank, why)
        connection = self._sockets.pop(rank, None)
        if connection is not None:
            self._poll.unregister(connection)
            del self._ranks[connection.fileno()]
            connection.close()


def connect(meeting: Meeting, peers: Collection[int]) -> PeerSockets:
    """Connect this rank to `peers`, processes of this host and user. All ranks of the meeting must call this.

    Raises TransportError, TransportTimeout naming who is missing.
    """
    party, sockets = meeting.party, {}
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"\0megatron-spell-{token_hex(16)}".encode())
        listener.listen(max(1, party.size))
        addresses = meeting.exchange("sockets", listener.getsockname().decode())
        for peer in sorted(rank for rank in peers if rank < party.rank):
            sockets[peer] = _call(meeting, peer, addresses[peer])
        expected = {rank for rank in peers if rank > party.rank}
        while expected - sockets.keys():
            rank, connection = _answer(meeting, listener, expected - sockets.keys())
            if connection is not None:
                sockets[rank] = connection
        meeting.roll_call("sockets connected")
    except BaseException:
        for connection in sockets.values():
            connection.close()
        raise
    finally:
        listener.close()
    return PeerSockets(party, sockets)


def _call(meeting: Meeting, peer: int, address: str) -> socket.socket:
    party = meeting.party
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(meeting.left_s)
        connection.connect(address.encode())
        if not _is_our_user(connection):
            raise TransportError(f"{party.me} was answered by another user's process in place of {party.name(peer)}")
        connection.send(_HEADER.pack(Kind.HELLO, 0, party.rank))
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise party.lost(peer, f"{party.name(peer)} to answer on this host", str(error)) from None
        raise
    return connection


def _answer(meeting: Meeting, listener: socket.socket, expected: set[int]) -> tuple[int, socket.socket | None]:
    """The next that calls and is expected; who is neither is turned away."""
    try:
        listener.settimeout(meeting.left_s)
        connection, _ = listener.accept()
    except TimeoutError:
        missing = ", ".join(meeting.party.name(rank) for rank in sorted(expected))
        raise meeting.party.waited(f"{missing} to connect on this host") from None
    with suppress(OSError):
        connection.settimeout(min(5.0, meeting.left_s))
        hello = connection.recv(_HEADER.size) if _is_our_user(connection) else b""
        if len(hello) == _HEADER.size:
            kind, _, rank = _HEADER.unpack(hello)
            if kind == Kind.HELLO and rank in expected:
                return rank, connection
    connection.close()
    return -1, None


def _is_our_user(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(credentials)[1] == os.geteuid()


def _frames(kind: Kind, tag: int, content: bytes, fds: Sequence[int]) -> Iterator[tuple[bytes, Sequence[int]]]:
    pieces = max(1, ceil(len(content) / _MAX_FRAME_BYTES), ceil(len(fds) / _MAX_FRAME_FDS))
    for i in range(pieces):
        header = _HEADER.pack(kind, i + 1 < pieces, tag)
        piece = content[i * _MAX_FRAME_BYTES : (i + 1) * _MAX_FRAME_BYTES]
        yield header + piece, fds[i * _MAX_FRAME_FDS : (i + 1) * _MAX_FRAME_FDS]


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """One frame; an empty one is the end. Raises OSError."""
    space = socket.CMSG_SPACE(_MAX_FRAME_FDS * _FD_BYTES)
    size = _HEADER.size + _MAX_FRAME_BYTES
    frame, extras, flags, _ = connection.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, content in extras:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise OSError("descriptors were lost on the way; raise the limit of open files (ulimit -n)")
    return frame, list(fds)
