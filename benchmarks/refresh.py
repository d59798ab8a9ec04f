"""A refresh of an engine by the bridge, against the plain way over the same connections, and what Python costs of it.

    python benchmarks/refresh.py [--layers 4 --scale 8 --repeats 7] [--json PATH]

ways: four gloo processes, two trainers (tp 2, ep 2) and the two workers of one engine (tp 2 with expert parallelism),
Qwen3-30B-A3B with 128 experts a layer but fewer layers and its widths divided by --scale, bfloat16. The plain way
(plain_refresh.py) gathers each tensor to Hugging Face form and broadcasts it whole. Both ways run in turn in the same
processes and fill the same parameters, which are compared bit by bit; a ratio is of two refreshes of one repeat. Time
is the slowest rank's by the clock, and the processor time of all ranks together, which other work on the machine does
not add to. Bytes are counted where the transport takes them; the bound is what the workers hold.

python: the plans of the real Qwen3-30B-A3B. A rank's whole refresh runs on tensors that cost nothing (one element,
expanded) and a transport that moves nothing; the copies themselves are left out. What is left is Python: walking the
buckets, finding views, receipts.

Exit code 1 when the bridge is less than 5 times as fast as the plain way by the clock, moves more than 1.02 times the
bound, ends with other bits, or costs a rank more than 50 ms of Python.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from plain_refresh import PlainRefresh
from python_cost import Cost, costs
from rich.console import Console
from rich.table import Table

from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places, engine_shapes
from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.inventory import local_shapes, trainer_inventory, trainer_shapes
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.transports.gloo import GroupTransport
from megatron_spell.config.model_shape import Experts, ModelShape
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh

QWEN3_30B_A3B = ModelShape(
    family="qwen3_moe",
    vocab_size=151936,
    hidden_size=2048,
    num_layers=48,
    num_heads=32,
    num_kv_heads=4,
    head_dim=128,
    ffn_size=6144,
    tied_embeddings=False,
    rope_theta=1e6,
    norm_eps=1e-6,
    max_positions=40960,
    qkv_bias=False,
    qk_norm=True,
    rope_scaling=None,
    experts=Experts(128, 8, 768, True, 0.001),
)
TRAINERS, ENGINE, NUM_RANKS = Mesh(tp=2, ep=2, etp=1), EngineMesh(tp=2, expert_parallel=True), 4
DTYPE = torch.bfloat16
LEAST_RATIO, MOST_OF_BOUND, MOST_PYTHON_MS = 5.0, 1.02, 50.0


@dataclass
class Ways:
    """What the four processes saw. Seconds have a value for each repeat."""

    num_tensors: int
    bound_bytes: int
    bytes: dict[str, int] = field(default_factory=dict)
    messages: dict[str, int] = field(default_factory=dict)
    clock_s: dict[str, list[float]] = field(default_factory=dict)
    processor_s: dict[str, list[float]] = field(default_factory=dict)
    cold_s: float = 0.0
    equal: bool = False

    def ratios(self, seconds: dict[str, list[float]]) -> list[float]:
        return [slow / fast for slow, fast in zip(seconds["plain"], seconds["bridge"])]


class Counted:
    """A transport that counts what it is given to send."""

    def __init__(self, inner: GroupTransport):
        self._inner, self.num_bytes, self.num_messages = inner, 0, 0

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def send(self, dst: int, tag: int, buffer: torch.Tensor):
        self.num_bytes, self.num_messages = self.num_bytes + buffer.numel(), self.num_messages + 1
        return self._inner.send(dst, tag, buffer)

    def post(self, dst: int, tag: int, message: bytes) -> None:
        self.num_bytes, self.num_messages = self.num_bytes + len(message), self.num_messages + 1
        self._inner.post(dst, tag, message)


class BridgeRefresh:
    """One rank's part: `run` is the same call on every rank. Buckets are of the default size."""

    def __init__(self, shape: ModelShape, rank: int, tensors: dict[str, torch.Tensor], transport: Counted):
        first = TRAINERS.world_size
        sources = {r: trainer_inventory(shape, TRAINERS, r) for r in range(first)}
        places = engine_places(shape, ENGINE)
        moves = plan(sources, {first + i: engine_inventory(shape, place) for i, place in enumerate(places)})
        self._transport, self._version, self._run = transport, 0, None
        if rank < first:
            self._run = Sender(moves, rank, tensors, dtype=DTYPE).run
        else:
            receiver = Receiver(moves, rank, dtype=DTYPE)
            self._run = lambda transport, check: receiver.into(transport, tensors, check=check)

    def run(self) -> int:
        self._version += 1
        before = self._transport.num_bytes
        self._run(self._transport, check=self._version)
        return self._transport.num_bytes - before


def timed(call: Callable[[], int]) -> tuple[float, float, int]:
    """(slowest rank's seconds, processor seconds of all ranks, what `call` returned) of one refresh of all ranks."""
    dist.barrier()
    began, worked = time.perf_counter(), time.process_time()
    value = call()
    seconds = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
    work = torch.tensor([time.process_time() - worked], dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    dist.all_reduce(work)
    return float(seconds), float(work), value


def summed(value: int) -> int:
    total = torch.tensor([value])
    dist.all_reduce(total)
    return int(total)


def run_rank(rank: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", NUM_RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NUM_RANKS, timeout=timedelta(seconds=300))
    shape, worker = scaled(options), rank - TRAINERS.world_size
    if worker < 0:
        sizes = trainer_shapes(shape, TRAINERS, rank)
    else:
        sizes = engine_shapes(shape, engine_places(shape, ENGINE)[worker])
    torch.manual_seed(rank)
    tensors = {name: torch.randn(size).to(DTYPE) for name, size in sizes.items()}
    if worker < 0:  # what is not split is the same on both
        for name, tensor in tensors.items():
            if "layernorm" in name or "router" in name:
                tensor.fill_(len(name) / 64)
    seen = measure(shape, rank, tensors, options.repeats)
    if rank == 0:
        Path(folder, "seen.json").write_text(json.dumps(asdict(seen)))
    dist.barrier()
    dist.destroy_process_group()


def measure(shape: ModelShape, rank: int, tensors: dict[str, torch.Tensor], repeats: int) -> Ways:
    held = [local_shapes(engine_inventory(shape, place)) for place in engine_places(shape, ENGINE)]
    elements = sum(torch.Size(size).numel() for own in held for size in own.values())
    plain = PlainRefresh(shape, TRAINERS, ENGINE, rank, tensors)
    seen = Ways(plain.num_tensors, elements * DTYPE.itemsize)
    transport = Counted(GroupTransport(dist.new_group(backend="gloo"), timeout_s=300))
    made: list[BridgeRefresh] = []

    def cold() -> int:
        made.append(BridgeRefresh(shape, rank, tensors, transport))
        return made[0].run()

    seen.cold_s = timed(cold)[0]
    by_bridge = {name: tensor.clone() for name, tensor in tensors.items()}
    if rank >= TRAINERS.world_size:
        for tensor in tensors.values():
            tensor.zero_()
    plain.run()
    own = held[rank - TRAINERS.world_size] if rank >= TRAINERS.world_size else {}
    same = all(torch.equal(by_bridge[n][: size[0]], tensors[n][: size[0]]) for n, size in own.items())
    seen.equal = summed(int(same)) == NUM_RANKS
    messages = transport.num_messages
    for _ in range(repeats):
        for name, call in (("bridge", made[0].run), ("plain", plain.run)):
            clock, work, num_bytes = timed(call)
            seen.clock_s.setdefault(name, []).append(clock)
            seen.processor_s.setdefault(name, []).append(work)
            seen.bytes[name] = summed(num_bytes)
    seen.messages = {"bridge": summed(transport.num_messages - messages) // repeats, "plain": plain.num_collectives}
    return seen


def scaled(options: argparse.Namespace) -> ModelShape:
    real, by = QWEN3_30B_A3B, options.scale
    return replace(
        real,
        vocab_size=real.vocab_size // by**2,
        hidden_size=real.hidden_size // by,
        num_layers=options.layers,
        head_dim=real.head_dim // by,
        experts=replace(real.experts, ffn_size=real.experts.ffn_size // by),
    )


def carry(options: argparse.Namespace) -> Ways:
    """Run the four processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(run_rank, (options, folder), nprocs=NUM_RANKS, start_method="spawn")
        return Ways(**json.loads(Path(folder, "seen.json").read_text()))


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def judge_ways(console: Console, seen: Ways) -> list[str]:
    table = Table(title=f"{seen.num_tensors} tensors, {seen.bound_bytes / 2**20:.1f} MiB held by the engine's workers")
    columns = ("way", "ms by the clock", "processor ms of all", "MiB moved", "of the bound", "messages")
    for column in columns:
        table.add_column(column, justify="right")
    for name in ("bridge", "plain"):
        milliseconds = ([1e3 * s for s in seconds[name]] for seconds in (seen.clock_s, seen.processor_s))
        moved, messages = seen.bytes[name], seen.messages[name]
        cells = [f"{moved / 2**20:.1f}", f"{moved / seen.bound_bytes:.4f}", str(messages)]
        table.add_row(name, *(spread(each, 0) for each in milliseconds), *cells)
    console.print(table)
    clock, work = seen.ratios(seen.clock_s), seen.ratios(seen.processor_s)
    warm_ms = 1e3 * statistics.median(seen.clock_s["bridge"])
    console.print(f"plain / bridge: {spread(clock)} by the clock, {spread(work)} of the processor")
    cold_ms = 1e3 * seen.cold_s
    console.print(
        f"the bridge's first refresh, plan and views included: {cold_ms:.0f} ms, {cold_ms / warm_ms:.1f} warm ones"
    )
    faults = [] if seen.equal else ["the two ways end with different bits"]
    if statistics.median(clock) < LEAST_RATIO:
        faults.append(f"{statistics.median(clock):.2f} times as fast as the plain way, {LEAST_RATIO:g} is asked for")
    if seen.bytes["bridge"] > MOST_OF_BOUND * seen.bound_bytes:
        faults.append(f"{seen.bytes['bridge']} bytes moved, the bound is {seen.bound_bytes}")
    return faults


def judge_python(console: Console, found: list[Cost]) -> list[str]:
    table = Table(title="Python of one refresh of Qwen3-30B-A3B, the dearest rank of each side, processor ms")
    for column in ("layout", "side", "buckets", "copies", "warm, median (range)", "cold", "plan"):
        table.add_column(column, justify="right")
    for cost in found:
        cold, planned = (f"{1e3 * s:.0f}" for s in (cost.cold_s, cost.plan_s))
        warm = spread([1e3 * s for s in cost.warm_s], 1)
        table.add_row(cost.layout, cost.side, str(cost.num_buckets), str(cost.num_copies), warm, cold, planned)
    console.print(table)
    dear = [cost for cost in found if 1e3 * statistics.median(cost.warm_s) > MOST_PYTHON_MS]
    return [f"{c.layout}: {1e3 * statistics.median(c.warm_s):.1f} ms of Python on a {c.side}" for c in dear]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 4), ("scale", 8), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=("ways", "python"))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def main() -> int:
    options, console, faults, figures = read_options(), Console(width=140), [], {}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    console.print(f"torch {torch.__version__}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    if options.only != "python":
        seen = carry(options)
        faults += judge_ways(console, seen)
        figures["ways"] = asdict(seen)
    if options.only != "ways":
        found = costs(QWEN3_30B_A3B, options.repeats)
        faults += judge_python(console, found)
        figures["python"] = [asdict(cost) for cost in found]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    for fault in faults:
        console.print(f"FELL SHORT: {fault}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
