"""Transports whose receivers read the sender's memory: what is common to shared memory and CUDA IPC.

A sender's two buffers are its *windows*, shown to each receiver once. From then on only tokens travel, over sockets of
the host: "slot s holds tag t" and "slot s was taken". What is told over a socket happened before what is read after it,
so memory needs no further order on the CPU; on a GPU a *fence* goes with each token, an event that the other process's
stream waits for.

Beside windows a source may *expose* its own tensors: receivers then copy straight out of them, one copy instead of two.
"""

import json
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from megatron_spell.bridge.transports.base import NUM_SEND_BUFFERS, TransportError
from megatron_spell.bridge.transports.meeting import Store
from megatron_spell.bridge.transports.sockets import Kind, Message, PeerSockets

_TOKEN = struct.Struct("<BQQ")  # slot, tag, number of bytes
_EXPOSED_SLOT = NUM_SEND_BUFFERS  # the token of exposed tensors, which are no window
_NUM_SLOTS = NUM_SEND_BUFFERS + 1


class Fence(Protocol):
    """Orders the work of two processes' streams. `handle` lets another process open it; "" where none is needed."""

    handle: str

    def mark(self) -> None:
        """What the current stream was given so far comes before."""
        ...

    def follow(self) -> None:
        """What the current stream is given from now on comes after the last mark."""
        ...


class Memory(Protocol):
    """One kind of memory that several processes of a host can use."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes] that can be shown. Raises TransportError."""
        ...

    def drop(self, tensor: torch.Tensor) -> None:
        """An allocated tensor will not be shown again."""
        ...

    def show(self, tensor: torch.Tensor) -> tuple[dict[str, Any], list[int]]:
        """What another process needs to see the tensor's whole storage: a record (what JSON holds), descriptors to
        send with it. Raises TransportError where this kind of memory does not hold the tensor."""
        ...

    def see(self, record: dict[str, Any], fds: list[int]) -> torch.Tensor:
        """uint8, a shown storage; takes its descriptors off `fds`. Raises TransportError."""
        ...

    def forget(self, record: dict[str, Any]) -> None:
        """The process that `record` was for has ended."""
        ...

    def make_fence(self) -> Fence: ...

    def open_fence(self, handle: str) -> Fence: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Shown:
    """What this rank has shown to one peer."""

    records: list[dict[str, Any]] = field(default_factory=list)
    is_exposed: bool = False
    kept: list[torch.Tensor] = field(default_factory=list)  # what is exposed, so that nothing else comes to stand there
    is_current: bool = False
    peer_fences: list[Fence] | None = None


@dataclass(slots=True)
class _Seen:
    """What this rank sees of one peer."""

    windows: list[torch.Tensor] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] | None = None
    their_fences: dict[int, Fence] = field(default_factory=dict)
    my_fences: list[Fence] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Pending:
    transport: "WindowTransport"
    dst: int
    slot: int
    what: str
    is_done: bool = False

    def wait(self) -> None:
        if not self.is_done:
            self.transport.wait_taken(self.dst, self.slot, self.what)
            self.is_done = True


@dataclass(slots=True, eq=False)
class _Arrival:
    transport: "WindowTransport"
    src: int
    tag: int
    num_bytes: int
    slot: int | None = None

    def wait(self) -> torch.Tensor:
        self.slot = self.transport.wait_held(self.src, self.tag, self.num_bytes)
        return self.transport.window(self.src, self.slot)[: self.num_bytes]

    def release(self) -> None:
        self.transport.tell_taken(self.src, self.tag, self.slot)


@dataclass(slots=True, eq=False)
class Borrowed:
    """A peer's own tensors, to be read between `wait` and `release`."""

    transport: "WindowTransport"
    src: int
    tag: int
    is_here: bool = False

    def wait(self) -> dict[str, torch.Tensor]:
        """name -> the peer's tensor, not to be written to. Raises TransportError, TransportTimeout."""
        self.transport.wait_held(self.src, self.tag, 0)
        self.is_here = True
        return self.transport.exposed(self.src)

    def release(self) -> None:
        """The tensors were read (on a GPU: the work that reads them is on the current stream)."""
        self.transport.tell_taken(self.src, self.tag, _EXPOSED_SLOT if self.is_here else None)


class WindowTransport:
    """A transport over `memory` to the peers that `sockets` connects. A window holds one message for one peer."""

    brings_memory = True

    def __init__(self, sockets: PeerSockets, memory: Memory, store: Store | None = None):
        self.rank, self.party = sockets.party.rank, sockets.party
        self._store = store  # rank 0's store serves others, who may still be meeting
        self._sockets, self.memory = sockets, memory
        self._windows: list[torch.Tensor] = []
        self._fences = [memory.make_fence() for _ in range(_NUM_SLOTS)]
        self._under_way: dict[int, int] = {}  # window -> who has not taken its message
        self._shown: dict[int, _Shown] = {}
        self._seen: dict[int, _Seen] = {}

    def send_buffers(self, num_bytes: int) -> list[torch.Tensor]:
        """See Transport. Raises TransportError while a message is under way."""
        if self._under_way:
            raise TransportError(f"{self.party.me} asks for new send buffers while a message is under way")
        for window in self._windows:
            self.memory.drop(window)
        self._windows = [self.memory.allocate(num_bytes) for _ in range(NUM_SEND_BUFFERS)]
        for shown in self._shown.values():
            shown.is_current = False
        return list(self._windows)

    def send(self, dst: int, tag: int, buffer: torch.Tensor) -> _Pending:
        slot = self._slot_of(buffer)
        if slot in self._under_way:
            whose = self.party.name(self._under_way[slot])
            raise TransportError(f"{self.party.me} reused send buffer {slot} before {whose} had taken what it held")
        what = self.party.taking(dst, tag, buffer.numel())
        self._show_windows(dst, what)
        self._under_way[slot] = dst
        return self._tell_holds(dst, tag, slot, buffer.numel(), what)

    def receive(self, src: int, tag: int, buffer: torch.Tensor | None, num_bytes: int) -> _Arrival:
        """See Transport; `buffer` is not used."""
        return _Arrival(self, src, tag, num_bytes)

    def post(self, dst: int, tag: int, message: bytes) -> None:
        what = self.party.taking(dst, tag, len(message), "control message")
        self._sockets.send(dst, Kind.POST, tag, message, what=what)

    def collect(self, src: int, tag: int, num_bytes: int) -> bytes:
        what = self.party.message(src, tag, num_bytes, "control message")
        content = self._sockets.next(src, Kind.POST, tag, what).content
        self.party.check_length(src, tag, len(content), num_bytes, "control message")
        return content

    def expose(self, tensors: Mapping[str, torch.Tensor], peers: Collection[int]) -> None:
        """Let `peers` read these tensors, whose memory must be of this transport's kind, as they are at any `offer`.

        The storages must stay where they are until `close`; a second call replaces what a peer reads.

        Raises TransportError where a tensor cannot be seen.
        """
        for peer in peers:
            content, fds = self._describe(tensors, self._shown.setdefault(peer, _Shown()))
            self._sockets.send(
                peer,
                Kind.EXPOSED,
                0,
                content,
                fds,
                what=f"{self.party.name(peer)} to see the tensors of {self.party.me}",
            )

    def exposed(self, src: int) -> dict[str, torch.Tensor]:
        """What `src` exposes to this rank; the first call waits for it. Read them only while they are borrowed."""
        seen = self._seen_of(src)
        if seen.tensors is None:
            what = f"{self.party.name(src)} to expose its tensors"
            seen.tensors = self._see_exposed(src, self._sockets.next(src, Kind.EXPOSED, 0, what))
        while (message := self._sockets.pop(src, Kind.EXPOSED)) is not None:
            seen.tensors = self._see_exposed(src, message)
        return seen.tensors

    def offer(self, dst: int, tag: int) -> _Pending:
        """Let `dst` read what is exposed to it; the tensors must not change before the pending's `wait` returned."""
        if not self._shown.get(dst, _Shown()).is_exposed:
            raise TransportError(f"{self.party.me} has exposed nothing to {self.party.name(dst)}")
        return self._tell_holds(dst, tag, _EXPOSED_SLOT, 0, self.party.taking(dst, tag, 0))

    def borrow(self, src: int, tag: int) -> Borrowed:
        """Begin to wait for that offer."""
        return Borrowed(self, src, tag)

    def close(self) -> None:
        for peer, shown in self._shown.items():
            if self._sockets.has_ended(peer):
                for record in shown.records:
                    self.memory.forget(record)
        self._shown, self._seen, self._windows, self._under_way = {}, {}, [], {}
        self._sockets.close()
        self.memory.close()
        self._store = None

    def wait_taken(self, dst: int, slot: int, what: str) -> None:
        self._sockets.next(dst, Kind.TAKEN, slot, what)
        shown = self._shown[dst]
        if self._fences[slot].handle:
            if shown.peer_fences is None:
                handles = json.loads(self._sockets.next(dst, Kind.FENCES, 0, what).content)
                shown.peer_fences = [self.memory.open_fence(handle) for handle in handles]
            shown.peer_fences[slot].follow()
        if slot != _EXPOSED_SLOT:
            del self._under_way[slot]

    def wait_held(self, src: int, tag: int, num_bytes: int) -> int:
        """The slot that holds that message, in the order of the current stream."""
        token = self._sockets.next(src, Kind.HOLDS, tag, self.party.message(src, tag, num_bytes)).content
        slot, _, sent = _TOKEN.unpack(token)
        self.party.check_length(src, tag, sent, num_bytes)
        if slot == _EXPOSED_SLOT:
            self.exposed(src)
        self._see_windows(src)
        if slot in self._seen_of(src).their_fences:
            self._seen_of(src).their_fences[slot].follow()
        return slot

    def window(self, src: int, slot: int) -> torch.Tensor:
        return self._seen_of(src).windows[slot]

    def tell_taken(self, src: int, tag: int, slot: int | None) -> None:
        what = f"{self.party.name(src)} to hear that message {tag} was taken"
        if slot is None:
            raise TransportError(f"{self.party.me} released message {tag} from {self.party.name(src)} before it came")
        if any(_TOKEN.unpack(token)[0] == slot for token in self._sockets.unread(src, Kind.HOLDS)):
            raise TransportError(
                f"{self.party.name(src)} reused its send buffer {slot} before {self.party.me} had taken message {tag}"
            )
        fences = self._seen_of(src).my_fences
        if fences:
            fences[slot].mark()
        self._sockets.send(src, Kind.TAKEN, slot, what=what)

    def _slot_of(self, buffer: torch.Tensor) -> int:
        for slot, window in enumerate(self._windows):
            if buffer.data_ptr() == window.data_ptr() and buffer.numel() <= window.numel() and buffer.is_contiguous():
                return slot
        raise TransportError(f"{self.party.me} can only send what stands at the beginning of one of its send buffers")

    def _tell_holds(self, dst: int, tag: int, slot: int, num_bytes: int, what: str) -> _Pending:
        self._fences[slot].mark()
        self._sockets.send(dst, Kind.HOLDS, tag, _TOKEN.pack(slot, tag, num_bytes), what=what)
        return _Pending(self, dst, slot, what)

    def _show_windows(self, dst: int, what: str) -> None:
        shown = self._shown.setdefault(dst, _Shown())
        if shown.is_current:
            return
        records, fds = self._show(self._windows, shown)
        handles = [fence.handle for fence in self._fences[:NUM_SEND_BUFFERS]]
        content = json.dumps({"segments": records, "fences": handles}).encode()
        self._sockets.send(dst, Kind.WINDOWS, 0, content, fds, what=what)
        shown.is_current = True

    def _show(self, tensors: Sequence[torch.Tensor], shown: _Shown) -> tuple[list[dict[str, Any]], list[int]]:
        records, fds = [], []
        for tensor in tensors:
            record, descriptors = self.memory.show(tensor)
            records.append(record)
            shown.records.append(record)
            fds += descriptors
        return records, fds

    def _see_windows(self, src: int) -> None:
        """Newest windows of a peer; they come before the first token that speaks of them."""
        while (message := self._sockets.pop(src, Kind.WINDOWS)) is not None:
            record, self._seen_of(src).windows = self._see_all(message)
            self._open_fences(src, dict(enumerate(record["fences"])))

    def _see_exposed(self, src: int, message: Message) -> dict[str, torch.Tensor]:
        record, storages = self._see_all(message)
        self._open_fences(src, {_EXPOSED_SLOT: record["fence"]})
        return {name: _view(storages[i], *how) for name, (i, *how) in record["tensors"].items()}

    def _open_fences(self, src: int, handles: dict[int, str]) -> None:
        """Open the peer's fences and let it have this rank's own."""
        seen = self._seen_of(src)
        fences = {slot: self.memory.open_fence(handle) for slot, handle in handles.items() if handle}
        if fences and not seen.my_fences:
            seen.my_fences = [self.memory.make_fence() for _ in range(_NUM_SLOTS)]
            content = json.dumps([fence.handle for fence in seen.my_fences]).encode()
            self._sockets.send(src, Kind.FENCES, 0, content, what=f"{self.party.name(src)} to get fences")
        seen.their_fences |= fences

    def _describe(self, tensors: Mapping[str, torch.Tensor], shown: _Shown) -> tuple[bytes, list[int]]:
        """Each storage once, and of each tensor where it stands in which."""
        starts: dict[int, int] = {}
        holders: list[torch.Tensor] = []
        places = {}
        for name, tensor in tensors.items():
            start = tensor.untyped_storage().data_ptr()
            if start not in starts:
                starts[start] = len(holders)
                holders.append(tensor.detach())
            dtype = str(tensor.dtype).removeprefix("torch.")
            places[name] = (starts[start], dtype, tensor.storage_offset(), tensor.shape, tensor.stride())
        segments, fds = self._show(holders, shown)
        shown.kept += holders
        shown.is_exposed = True
        record = {"segments": segments, "fence": self._fences[_EXPOSED_SLOT].handle, "tensors": places}
        return json.dumps(record).encode(), fds

    def _seen_of(self, src: int) -> _Seen:
        return self._seen.setdefault(src, _Seen())

    def _see_all(self, message: Message) -> tuple[dict[str, Any], list[torch.Tensor]]:
        """What was told, and the storages that go with it."""
        record = json.loads(message.content)
        try:
            return record, [self.memory.see(segment, message.fds) for segment in record["segments"]]
        finally:
            message.close_fds()


def _view(storage: torch.Tensor, dtype: str, offset: int, shape: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    typed = torch.empty(0, dtype=getattr(torch, dtype), device=storage.device)
    return typed.set_(storage.untyped_storage(), offset, tuple(shape), tuple(stride))
