"""How long a refresh takes on named hardware: the bound of the busiest link, and the buckets' walk played through."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from megatron_spell.config.hardware import Hardware

GIGA, MICRO = 1e9, 1e-6
IN_FLIGHT = 2  # buckets that a rank has under way on one link, as in bridge/executor.py


class Path(StrEnum):
    """What lies between the two ends of a message."""

    SAME_GPU = "same GPU"
    NVLINK = "same node (NVLink)"
    INFINIBAND = "between nodes (InfiniBand)"


@dataclass(frozen=True, slots=True)
class Sites:
    """The GPU that each rank of the bridge runs on; `gpus_per_node` neighbours make a node."""

    gpus: Mapping[int, int]
    gpus_per_node: int

    def node(self, rank: int) -> int:
        return self.gpus[rank] // self.gpus_per_node

    def path(self, src: int, dst: int) -> Path:
        if self.gpus[src] == self.gpus[dst]:
            return Path.SAME_GPU
        return Path.NVLINK if self.node(src) == self.node(dst) else Path.INFINIBAND


@dataclass(frozen=True, slots=True)
class Message:
    """A bucket from rank `src` to rank `dst`."""

    src: int
    dst: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Bound:
    """No refresh by this plan is faster: `num_bytes` leave (`sends`) or reach one GPU over one kind of link."""

    seconds: float
    gpu: int
    path: Path
    sends: bool
    num_bytes: int


def rate(hardware: Hardware, path: Path) -> float:
    """Bytes a second in one direction."""
    gb_per_s = {
        Path.SAME_GPU: hardware.hbm_copy_gb_per_s,
        Path.NVLINK: hardware.nvlink_gb_per_s,
        Path.INFINIBAND: hardware.infiniband_gb_per_s,
    }
    return gb_per_s[path] * GIGA


def bound(bytes_between: Mapping[tuple[int, int], int], sites: Sites, hardware: Hardware) -> Bound:
    """The bytes of the most loaded GPU over the rate of the link they take; nothing else is counted."""
    load: dict[tuple[int, Path, bool], int] = defaultdict(int)
    for (src, dst), num_bytes in bytes_between.items():
        path = sites.path(src, dst)
        load[sites.gpus[src], path, True] += num_bytes
        load[sites.gpus[dst], path, False] += num_bytes
    bounds = (Bound(n / rate(hardware, path), gpu, path, sends, n) for (gpu, path, sends), n in load.items())
    return max(bounds, key=lambda b: (b.seconds, -b.gpu, b.sends))


def predict(links: Sequence[Sequence[Message]], sites: Sites, hardware: Hardware) -> float:
    """Seconds from the first pack to the last landing when each link walks its buckets in their order.

    Played through are: packing and landing (copies within a GPU; between ranks of one GPU a single copy), two buckets
    in flight for each rank and link, ports that carry one message at a time in one direction, and a latency after each
    message. Left out are Python, pausing, the engines' caches, and whatever else uses links or memory.
    """
    return max(_Walk(links, sites, hardware).run(), _copying(links, sites, hardware))


def _copying(links: Sequence[Sequence[Message]], sites: Sites, hardware: Hardware) -> float:
    """What the busiest GPU needs for packing and landing together."""
    copied: dict[int, int] = defaultdict(int)
    for message in (message for link in links for message in link):
        for gpu in {sites.gpus[message.src], sites.gpus[message.dst]}:  # within one it is copied once
            copied[gpu] += message.num_bytes
    return max(copied.values()) / rate(hardware, Path.SAME_GPU)


Port = tuple[int, Path, bool]  # GPU, kind of link, outwards


@dataclass(slots=True, eq=False)
class _Step:
    """A message; on each of its two ranks it waits for so many steps, and later steps wait for it."""

    message: Message
    waits_for: dict[int, int]
    later: dict[int, list["_Step"]] = field(default_factory=lambda: defaultdict(list))
    sides_ready: int = 0


def _chained(link: Sequence[Message]) -> list[_Step]:
    """The link's messages; each waits, on both its ranks, until all but the one before it have ended there."""
    steps = [_Step(message, {message.src: 0, message.dst: 0}) for message in link]
    of_rank: dict[int, list[_Step]] = defaultdict(list)
    for step in steps:
        for rank in step.waits_for:
            for earlier in of_rank[rank][-IN_FLIGHT - 1 : 1 - IN_FLIGHT]:
                earlier.later[rank].append(step)
                step.waits_for[rank] += 1
            of_rank[rank].append(step)
    return steps


class _Walk:
    """Plays the messages in time: pack, wait for both ports, travel, land."""

    def __init__(self, links: Sequence[Sequence[Message]], sites: Sites, hardware: Hardware):
        self._sites, self._hardware = sites, hardware
        self._steps = [step for link in links for step in _chained(link)]
        self._events: list[tuple[float, int, Callable[[_Step, float], None], _Step]] = []
        self._num_events = 0
        self._copies_until: dict[tuple[int, str], float] = defaultdict(float)
        self._busy: set[Port] = set()
        self._waiting: dict[Port, list[_Step]] = defaultdict(list)

    def run(self) -> float:
        for step in self._steps:
            for rank, count in step.waits_for.items():
                if not count:
                    self._begin(step, rank, 0.0)
        now = 0.0
        while self._events:
            now, _, happen, step = heapq.heappop(self._events)
            happen(step, now)
        return now

    def _at(self, time: float, happen: Callable[[_Step, float], None], step: _Step) -> None:
        self._num_events += 1  # events of one time happen in the order in which they were foreseen
        heapq.heappush(self._events, (time, self._num_events, happen, step))

    def _begin(self, step: _Step, rank: int, now: float) -> None:
        if rank == step.message.src and self._path(step) is not Path.SAME_GPU:
            self._at(self._copied(rank, "packs", step, now), self._side_ready, step)
        else:
            self._at(now, self._side_ready, step)

    def _side_ready(self, step: _Step, now: float) -> None:
        step.sides_ready += 1
        if step.sides_ready < 2:
            return
        if self._path(step) is Path.SAME_GPU:
            self._arrive_at(now, step)
            return
        for port in self._ports(step):
            self._waiting[port].append(step)
        self._travel(step, now)

    def _travel(self, step: _Step, now: float) -> None:
        """Take both ports if they are free."""
        ports = self._ports(step)
        if self._busy.isdisjoint(ports):
            self._busy.update(ports)
            for port in ports:
                self._waiting[port].remove(step)
            self._at(now + step.message.num_bytes / rate(self._hardware, self._path(step)), self._travelled, step)

    def _travelled(self, step: _Step, now: float) -> None:
        ports = self._ports(step)
        self._busy.difference_update(ports)
        self._arrive_at(now, step)
        for port in ports:
            for waiting in tuple(self._waiting[port]):
                self._travel(waiting, now)

    def _arrive_at(self, now: float, step: _Step) -> None:
        self._at(now + self._hardware.message_latency_us * MICRO, self._arrived, step)

    def _arrived(self, step: _Step, now: float) -> None:
        if self._path(step) is not Path.SAME_GPU:  # there landing is one copy out of the sender's own tensors
            self._end(step, step.message.src, now)
        self._at(self._copied(step.message.dst, "lands", step, now), self._landed, step)

    def _landed(self, step: _Step, now: float) -> None:
        if self._path(step) is Path.SAME_GPU:
            self._end(step, step.message.src, now)
        self._end(step, step.message.dst, now)

    def _end(self, step: _Step, rank: int, now: float) -> None:
        for later in step.later[rank]:
            later.waits_for[rank] -= 1
            if not later.waits_for[rank]:
                self._begin(later, rank, now)

    def _copied(self, rank: int, what: str, step: _Step, now: float) -> float:
        """When a copy of the message within the GPU is done that is asked for now."""
        key = self._sites.gpus[rank], what
        copy_s = step.message.num_bytes / rate(self._hardware, Path.SAME_GPU)
        self._copies_until[key] = max(self._copies_until[key], now) + copy_s
        return self._copies_until[key]

    def _path(self, step: _Step) -> Path:
        return self._sites.path(step.message.src, step.message.dst)

    def _ports(self, step: _Step) -> tuple[Port, Port]:
        path, gpus = self._path(step), self._sites.gpus
        return (gpus[step.message.src], path, True), (gpus[step.message.dst], path, False)
