"""Which transport goes to which peer, found when ranks meet.

    meet("auto", store, rank, size, names=...)   # a Transport

Ranks tell each other where they are: the host (its boot, its name, its network namespace) and the GPU, if they use one.
Then every rank derives the kind of every pair by the same rule, so nothing more need be agreed.
"""

import socket
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from megatron_spell.bridge.transports import gloo, ipc, nccl, shm
from megatron_spell.bridge.transports.base import (
    DEFAULT_TIMEOUT_S,
    Arrival,
    Party,
    Pending,
    Transport,
    TransportError,
    plain_buffers,
)
from megatron_spell.bridge.transports.meeting import Meeting, Store, open_store
from megatron_spell.bridge.transports.windows import Borrowed, WindowTransport

KINDS = ("auto", "gloo", "shm", "nccl", "cuda_ipc")
_ON_GPU = ("nccl", "cuda_ipc")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is. `device` is a GPU's uuid, "" for a rank whose buffers are in host memory."""

    host: str
    device: str = ""

    @classmethod
    def here(cls, device: str = "") -> "Place":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        network = Path("/proc/self/ns/net").stat().st_ino  # sockets of one are not seen in another
        return cls(f"{boot}/{socket.gethostname()}/{network}", device)


def choose(kind: str, one: Place, other: Place) -> str:
    """The kind of transport between two ranks. Raises TransportError in one line where `kind` cannot be."""
    same_host, same_device = one.host == other.host, bool(one.device) and one == other
    if kind == "auto":
        if bool(one.device) != bool(other.device):
            raise TransportError("one rank's weights are on a GPU and the other's are not; name a transport: shm, gloo")
        if one.device:
            return "cuda_ipc" if same_device else "nccl"
        return "shm" if same_host else "gloo"
    if kind == "shm" and not same_host:
        raise TransportError("shm is for ranks of one host and network namespace; use auto or gloo")
    if kind in _ON_GPU and not (one.device and other.device):
        raise TransportError(f"{kind} needs both ranks on CUDA; use auto, shm or gloo")
    if kind == "cuda_ipc" and not same_device:
        raise TransportError("cuda_ipc is for ranks that share a GPU; use auto or nccl")
    if kind == "nccl" and same_device:
        raise TransportError("nccl cannot connect two ranks on one GPU; use auto or cuda_ipc")
    return kind


class RoutedTransport:
    """Several transports as one, each for some of the peers.

    Send buffers come from the first that brings memory, because any other can send from them too.
    """

    def __init__(self, party: Party, by_peer: Mapping[int, Transport]):
        self.rank, self.party = party.rank, party
        self._by_peer = dict(by_peer)
        self._transports = list({id(t): t for t in self._by_peer.values()}.values())
        self._transports.sort(key=lambda transport: not transport.brings_memory)
        self.brings_memory = all(transport.brings_memory for transport in self._transports)

    def send_buffers(self, num_bytes: int) -> list[torch.Tensor]:
        return self._transports[0].send_buffers(num_bytes) if self._transports else plain_buffers(num_bytes)

    def send(self, dst: int, tag: int, buffer: torch.Tensor) -> Pending:
        return self.to(dst).send(dst, tag, buffer)

    def receive(self, src: int, tag: int, buffer: torch.Tensor | None, num_bytes: int) -> Arrival:
        return self.to(src).receive(src, tag, buffer, num_bytes)

    def post(self, dst: int, tag: int, message: bytes) -> None:
        self.to(dst).post(dst, tag, message)

    def collect(self, src: int, tag: int, num_bytes: int) -> bytes:
        return self.to(src).collect(src, tag, num_bytes)

    def expose(self, tensors: Mapping[str, torch.Tensor], peers: Collection[int]) -> None:
        """As WindowTransport.expose; see `can_lend`."""
        for peer in peers:
            self._window_to(peer).expose(tensors, [peer])

    def exposed(self, src: int) -> dict[str, torch.Tensor]:
        return self._window_to(src).exposed(src)

    def offer(self, dst: int, tag: int) -> Pending:
        return self._window_to(dst).offer(dst, tag)

    def borrow(self, src: int, tag: int) -> Borrowed:
        return self._window_to(src).borrow(src, tag)

    def _window_to(self, peer: int) -> WindowTransport:
        transport = self.to(peer)
        if not isinstance(transport, WindowTransport):
            raise TransportError(f"{self.party.name(peer)} cannot see the memory of {self.party.me}")
        return transport

    def to(self, peer: int) -> Transport:
        """The transport that goes to `peer`. Raises TransportError."""
        if peer not in self._by_peer:
            raise TransportError(f"{self.party.me} has no connection to {self.party.name(peer)}")
        return self._by_peer[peer]

    def close(self) -> None:
        for transport in self._transports:
            transport.close()


def can_lend(transport: Transport, peers: Collection[int]) -> bool:
    """Whether `peers` can read this rank's own tensors, as `expose` and `offer` let them."""
    ways = [transport.to(peer) for peer in peers] if isinstance(transport, RoutedTransport) else [transport]
    return all(isinstance(way, WindowTransport) for way in ways)


def meet(
    kind: str,
    store: Store,
    rank: int,
    size: int,
    *,
    device: torch.device | str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    names: Mapping[int, str] | None = None,
    session: str = "bridge",
    address: str | None = None,
) -> Transport:
    """Meet `size` ranks at `store` and connect them by `kind`, one of KINDS, which all must name alike.

    `device` is a GPU for weights that are there, else None; `address` is gloo.join's. A `session` is good for one
    meeting at a store: ranks that meet anew need another. Raises TransportError where the ranks cannot be connected so,
    TransportTimeout naming who did not come.
    """
    if kind not in KINDS:
        raise TransportError(f"transport {kind!r} is not known; one of {', '.join(KINDS)}")
    if kind in _ON_GPU or (device is not None and torch.device(device).type == "cuda"):
        device = ipc.cuda_device(device)
        place = Place.here(ipc.device_uuid(device))
    else:
        place = Place.here()
    party = Party(rank, size, timeout_s, names)
    records = Meeting(store, session, party).exchange("places", {"kind": kind, "place": asdict(place)})
    routes = plan_routes(party, records)
    how = {"timeout_s": timeout_s, "names": names}
    made: dict[str, Transport] = {}
    try:
        for used in sorted(set(routes.values())):
            peers = [
                peer for pair, of in routes.items() if of == used and rank in pair for peer in pair if peer != rank
            ]
            made[used] = _join(used, store, rank, size, f"{session}/{used}", device, address, peers, how)
    except BaseException:
        for transport in made.values():
            transport.close()
        raise
    by_peer = {peer: made[of] for pair, of in routes.items() if rank in pair for peer in pair if peer != rank}
    _close_unused(made, by_peer)
    if len(made) == 1:
        return next(iter(made.values()))
    return RoutedTransport(party, by_peer)


def rendezvous(
    kind: str,
    host: str,
    port: int,
    rank: int,
    size: int,
    *,
    device: torch.device | str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    names: Mapping[int, str] | None = None,
    session: str = "bridge",
) -> Transport:
    """`meet` at `host`:`port`, where rank 0 serves the store."""
    store = open_store(host, port, serve=rank == 0, timeout_s=timeout_s)
    how = {"device": device, "timeout_s": timeout_s, "names": names, "session": session}
    return meet(kind, store, rank, size, address=gloo.loopback(host), **how)


def plan_routes(party: Party, records: list[dict]) -> dict[tuple[int, int], str]:
    """The kind of transport of each pair of ranks, from what all have told. Raises TransportError naming the pair."""
    routes = {}
    for low in range(party.size):
        for high in range(low + 1, party.size):
            kinds = [records[rank]["kind"] for rank in (low, high)]
            pair = f"between {party.name(low)} and {party.name(high)}"
            if kinds[0] != kinds[1]:
                raise TransportError(f"{pair}: transport {kinds[0]} on one side, {kinds[1]} on the other")
            try:
                routes[low, high] = choose(kinds[0], *(Place(**records[rank]["place"]) for rank in (low, high)))
            except TransportError as error:
                raise TransportError(f"{pair}: {error}") from None
    return routes


def _join(kind: str, store, rank, size, session, device, address, peers, how) -> Transport:
    if kind == "gloo":
        return gloo.join(store, rank, size, session=session, address=address, **how)
    if kind == "nccl":
        return nccl.join(store, rank, size, session=session, address=address, device=device, **how)
    if kind == "cuda_ipc":
        return ipc.join(store, rank, size, session=session, device=device, peers=peers, **how)
    return shm.join(store, rank, size, session=session, peers=peers, **how)


def _close_unused(made: dict[str, Transport], by_peer: Mapping[int, Transport]) -> None:
    """All ranks take part in making each kind; some need it for no peer."""
    for kind in [kind for kind, transport in made.items() if transport not in by_peer.values()]:
        made.pop(kind).close()
