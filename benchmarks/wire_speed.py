"""The bridge's transports between two processes of this machine, against a bare copy and a bare send of the same bytes.

    python benchmarks/wire_speed.py [--bucket-mib 16 --buckets 32 --repeats 9 --json FILE]

A refresh is what the executor does: the sender packs buckets from its own tensors into two buffers in turn, the
receiver lands each in tensors of its own, and both go on at once. `copy` is one process that copies the same bytes from
the same tensors while the other rests; `copies` is both processes doing so at once, which is all that two cores and
their memory give. `gloo bare` sends the tensors themselves over gloo, two under way, and packs and lands nothing.

All ways run in turn in every repeat and a ratio is of two ways of one repeat, so that a busy machine slows both. The
clock is the sender's: from the first pack until every buffer was taken. "Busier side" is the processor time of the side
that used more of it, which other programs do not add to: what the clock would show at best with a core for each. Each
process uses one thread. The first round warms up, and what landed in it is compared with what was sent.

Exit code 1 when bytes differ or when shm is slower than LEAST_RATIO of `copy` by the clock.
"""

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from megatron_spell.bridge.transports import gloo, shm
from megatron_spell.bridge.transports.base import Transport
from megatron_spell.bridge.transports.gloo import GroupTransport
from megatron_spell.bridge.transports.meeting import open_store

WAYS = ("copy", "copies", "shm", "gloo bare", "gloo")
LANDING = ("shm", "gloo")  # the ways that land what was sent
LEAST_RATIO = 0.7
TIMEOUT_S = 300.0
_NUM_TENSORS = 8  # more than a cache holds
_UNDER_WAY = 2
_SECONDS = struct.Struct("d")


class Side:
    """One process: its tensors, its transports, and the ways it takes part in."""

    def __init__(self, rank: int, port: int, bucket_bytes: int, num_buckets: int):
        store = open_store("127.0.0.1", port, serve=rank == 0, timeout_s=TIMEOUT_S)
        how = {"timeout_s": TIMEOUT_S, "address": "127.0.0.1"}
        self.gloo: GroupTransport = gloo.join(store, rank, 2, session="gloo", **how)
        self.shm = shm.join(store, rank, 2, session="shm", timeout_s=TIMEOUT_S)
        self.rank, self.num_buckets, self.bucket_bytes = rank, num_buckets, bucket_bytes
        generator = torch.Generator().manual_seed(rank)
        self.tensors = [
            torch.randint(0, 256, (bucket_bytes,), dtype=torch.uint8, generator=generator)
            for _ in range(min(num_buckets, _NUM_TENSORS))
        ]
        transports: tuple[Transport, ...] = (self.gloo, self.shm)
        self.buffers = {id(transport): transport.send_buffers(bucket_bytes) for transport in transports}

    def tensor(self, number: int) -> torch.Tensor:
        return self.tensors[number % len(self.tensors)]

    def copy(self) -> None:
        buffers = self.buffers[id(self.shm)]
        for number in range(self.num_buckets):
            buffers[number % 2].copy_(self.tensor(number))

    def send(self, transport: Transport, *, pack: bool = True) -> None:
        buffers, under_way = self.buffers[id(transport)], []
        for number in range(self.num_buckets):
            if len(under_way) == _UNDER_WAY:
                under_way.pop(0).wait()
            buffer = buffers[number % 2].copy_(self.tensor(number)) if pack else self.tensor(number)
            under_way.append(transport.send(1, number, buffer))
        for pending in under_way:
            pending.wait()

    def receive(self, transport: Transport, *, land: bool = True) -> None:
        spare, arrivals = self.buffers[id(transport)], []
        for number in range(self.num_buckets + 1):
            if number < self.num_buckets:
                buffer = None if transport.brings_memory else spare[number % 2] if land else self.tensor(number)
                arrivals.append(transport.receive(0, number, buffer, self.bucket_bytes))
            if number >= 1:
                arrival = arrivals.pop(0)
                content = arrival.wait()
                if land:
                    self.tensor(number - 1).copy_(content)
                arrival.release()

    def parts(self) -> dict[str, Callable[[], None]]:
        """What this side does in each way; for `copies` see `take_part`."""
        if self.rank == 0:
            return {
                "copy": self.copy,
                "copies": self.copy,
                "shm": lambda: self.send(self.shm),
                "gloo bare": lambda: self.send(self.gloo, pack=False),
                "gloo": lambda: self.send(self.gloo),
            }
        return {
            "copy": lambda: None,
            "copies": self.copy,
            "shm": lambda: self.receive(self.shm),
            "gloo bare": lambda: self.receive(self.gloo, land=False),
            "gloo": lambda: self.receive(self.gloo),
        }

    def take_part(self, way: str) -> tuple[float, float]:
        """Seconds of this side's part of `way`, begun together with the other's; processor seconds of the busier."""
        part, other = self.parts()[way], 1 - self.rank
        self.shm.post(other, 0, b"go")
        self.shm.collect(other, 0, 2)
        started, worked = time.perf_counter(), time.process_time()
        part()
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
        self.shm.post(other, 1, _SECONDS.pack(worked))
        return seconds, max(worked, *_SECONDS.unpack(self.shm.collect(other, 1, _SECONDS.size)))

    def has_landed(self) -> bool:
        """Compare what landed with what was sent, by a checksum of each tensor."""
        sums = b"".join(zlib.crc32(tensor.numpy()).to_bytes(4, "big") for tensor in self.tensors)
        self.shm.post(1 - self.rank, 2, sums)
        return self.shm.collect(1 - self.rank, 2, len(sums)) == sums


@dataclass(slots=True)
class Took:
    """Seconds of every repeat."""

    clock: list[float] = field(default_factory=list)
    busier: list[float] = field(default_factory=list)


def run(side: Side, repeats: int) -> dict[str, Took]:
    """What every way took in every repeat; both sides call this. Raises SystemExit when bytes differ."""
    for way in WAYS:
        side.take_part(way)
        if way in LANDING and not side.has_landed():
            raise SystemExit(f"FELL SHORT: {way}: what landed is not what was sent")
        if way in LANDING and side.rank == 1:
            for tensor in side.tensors:
                tensor.zero_()  # so that the next way must bring it all
    took = {way: Took() for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            clock, busier = side.take_part(way)
            took[way].clock.append(clock)
            took[way].busier.append(busier)
    return took


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def ratios(seconds: list[float], base: list[float]) -> list[float]:
    """How fast a way is, by another, in each repeat."""
    return [b / s for s, b in zip(seconds, base)]


def show(console: Console, took: dict[str, Took], num_bytes: int) -> None:
    table = Table(title="the same bytes every way: median (range)")
    for column in ("way", "GB/s by the clock", "of a copy", "of two copies", "of a bare send", "busier side of a copy"):
        table.add_column(column, justify="right")
    for way, its in took.items():
        cells = [spread([num_bytes / s / 1e9 for s in its.clock])]
        for base in ("copy", "copies", "gloo bare"):
            wanted = base != way and (base != "gloo bare" or way == "gloo")
            cells.append(spread(ratios(its.clock, took[base].clock)) if wanted else "")
        cells.append("" if way == "copy" else spread(ratios(its.busier, took["copy"].busier)))
        table.add_row(way, *cells)
    console.print(table)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket-mib", type=float, default=16)
    parser.add_argument("--buckets", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--least-ratio", type=float, default=LEAST_RATIO, help="of shm by a bare copy")
    parser.add_argument("--json", type=Path, help="write every repeat's seconds there")
    parser.add_argument("--peer-port", type=int, help=argparse.SUPPRESS)  # this process is the receiver
    return parser.parse_args()


def main() -> int:
    options, console = read_options(), Console(width=150)
    torch.set_num_threads(1)
    bucket_bytes = int(options.bucket_mib * 2**20)
    port = options.peer_port or free_port()
    if options.peer_port:
        run(Side(1, port, bucket_bytes, options.buckets), options.repeats)
        return 0
    peer = subprocess.Popen([sys.executable, *sys.argv, "--peer-port", str(port)], stdout=subprocess.DEVNULL)
    try:
        took = run(Side(0, port, bucket_bytes, options.buckets), options.repeats)
    finally:
        peer.kill() if sys.exc_info()[0] else peer.wait(TIMEOUT_S)
    num_bytes = bucket_bytes * options.buckets
    console.print(
        f"{options.buckets} buckets of {options.bucket_mib:g} MiB, {options.repeats} repeats,"
        f" torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    show(console, took, num_bytes)
    if options.json:
        options.json.write_text(
            json.dumps({"num_bytes": num_bytes, "seconds": {w: asdict(its) for w, its in took.items()}}) + "\n"
        )
    reached = statistics.median(ratios(took["shm"].clock, took["copy"].clock))
    if reached < options.least_ratio:
        console.print(f"FELL SHORT: shm reaches {reached:.2f} of a bare copy, {options.least_ratio:g} is asked for")
    return int(reached < options.least_ratio)


if __name__ == "__main__":
    sys.exit(main())
