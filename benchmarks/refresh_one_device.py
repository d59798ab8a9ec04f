"""A refresh between two processes of one device (engine on the trainer's GPU), against a bare copy of the same bytes.

    python benchmarks/refresh_one_device.py --device cuda                    # Qwen3-4B over CUDA IPC
    python benchmarks/refresh_one_device.py --layers 4 --hidden 1024         # a small one over shared memory

One process holds the weights as a trainer rank does, the other as one worker of an engine does. `direct` copies from
tensor to tensor, `buckets` packs into two buffers and lands from them, `copy` is the device's own copy of as many bytes
within one process. All ways run in turn in every repeat; a ratio is of two ways of one repeat. Cold is the first
refresh, which shows memory and makes views; the others are warm. Receipts are compared in every refresh, and after the
cold ones a sum over each tensor that does not go through the bridge's own code for moving.

Exit code 1 when direct is slower than LEAST_RATIO of the copy, or when weights differ.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from wire_speed import free_port, spread

from megatron_spell.bridge.direct import DirectReceiver, DirectSender
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places, engine_shapes
from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.inventory import checkpoint_inventory, trainer_inventory, trainer_shapes
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.stacks import members, values
from megatron_spell.bridge.transports import ipc, shm
from megatron_spell.bridge.transports.meeting import open_store
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh

LEAST_RATIO = 0.6
TIMEOUT_S = 300.0
WAYS = ("copy", "direct", "buckets")
TRAINER, WORKER = 0, 1
DTYPE = torch.bfloat16


def qwen3(layers: int, hidden: int) -> ModelShape:
    """Qwen3-4B's proportions (36 layers, 2560 wide, as published) at another size."""
    return ModelShape.from_json(
        {
            "model_type": "qwen3",
            "vocab_size": 151936,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": hidden * 19 // 5,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "max_position_embeddings": 40960,
        }
    )


class Side:
    """One process: what it holds, and its part in each way."""

    def __init__(self, rank: int, port: int, options: argparse.Namespace):
        shape, self.device = qwen3(options.layers, options.hidden), torch.device(options.device)
        self.rank, self.bucket_bytes = rank, int(options.bucket_mib * 2**20)
        store = open_store("127.0.0.1", port, serve=rank == TRAINER, timeout_s=TIMEOUT_S)
        join = ipc.join if self.device.type == "cuda" else shm.join
        how = {"device": self.device} if self.device.type == "cuda" else {}
        self.transports = {
            way: join(store, rank, 2, session=way, timeout_s=TIMEOUT_S, **how) for way in ("direct", "buckets")
        }
        (place,) = engine_places(shape, EngineMesh())
        self.inventory = trainer_inventory(shape, Mesh(), 0) if rank == TRAINER else engine_inventory(shape, place)
        self.plan = plan({TRAINER: trainer_inventory(shape, Mesh(), 0)}, {WORKER: engine_inventory(shape, place)})
        self.num_bytes = sum(self.plan.bytes_between(DTYPE.itemsize).values())
        self.names = checkpoint_inventory(shape)
        shapes = trainer_shapes(shape, Mesh(), 0) if rank == TRAINER else engine_shapes(shape, place)
        self.tensors = self._made(shapes)
        self.ways = self._ways()

    def _made(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        torch.manual_seed(self.rank)
        made = {name: torch.randn(size, dtype=DTYPE, device=self.device) for name, size in shapes.items()}
        if self.rank == TRAINER and self.device.type != "cuda":
            return self.transports["direct"].memory.like(made)  # what can be shown to another process
        return made

    def _ways(self) -> dict[str, Callable[[int], None]]:
        settings = {"dtype": DTYPE, "bucket_bytes": self.bucket_bytes}
        direct, buckets = self.transports["direct"], self.transports["buckets"]
        if self.rank == TRAINER:
            source, target = (torch.zeros(self.num_bytes, dtype=torch.uint8, device=self.device) for _ in range(2))
            lender = DirectSender(self.plan, TRAINER, self.tensors, **settings)
            sender = Sender(self.plan, TRAINER, self.tensors, **settings)
            return {
                "copy": lambda check: target.copy_(source),
                "direct": lambda check: lender.run(direct, check=check),
                "buckets": lambda check: sender.run(buckets, check=check),
            }
        reader = DirectReceiver(self.plan, WORKER, **settings)
        receiver = Receiver(self.plan, WORKER, **settings)
        return {
            "copy": lambda check: None,
            "direct": lambda check: reader.into(direct, self.tensors, check=check),
            "buckets": lambda check: receiver.into(buckets, self.tensors, check=check),
        }

    def take_part(self, way: str, check: int) -> float:
        """Seconds until both sides are done, the device included."""
        self._meet(b"go")
        started = time.perf_counter()
        self.ways[way](check)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._meet(b"ok")
        return time.perf_counter() - started

    def forget(self) -> None:
        """Let nothing be right by what landed before."""
        if self.rank == WORKER:
            for tensor in self.tensors.values():
                tensor.zero_()

    def sums(self) -> str:
        """Of every Hugging Face tensor the sum of its elements and of each by its place, exact in 64 bits."""
        found: dict[str, list[int]] = {}
        for segment in self.inventory:
            part = values(self.tensors, segment.local_name, segment.local_box)
            bits = part.contiguous().view(torch.int16).to(torch.int64)
            rows = torch.arange(segment.hf_box.start[0], segment.hf_box.stop[0], device=bits.device)
            weighted = (bits.reshape(len(rows), -1).sum(1) * (rows + 1)).sum()
            for name, _ in members(segment.hf_name, segment.hf_box):
                total = found.setdefault(name, [0, 0])
                total[0] += int(bits.sum())
                total[1] += int(weighted)
        return json.dumps(found, sort_keys=True)

    def agrees(self) -> bool:
        own = self.sums().encode()
        self.transports["direct"].post(1 - self.rank, 5, own)
        return self.transports["direct"].collect(1 - self.rank, 5, len(own)) == own

    def _meet(self, word: bytes) -> None:
        self.transports["buckets"].post(1 - self.rank, 4, word)
        self.transports["buckets"].collect(1 - self.rank, 4, len(word))


def run(side: Side, repeats: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Cold seconds and those of every warm repeat, by way. Raises SystemExit when what landed differs."""
    cold = {}
    for way in WAYS:
        side.forget()
        cold[way] = side.take_part(way, 0)
        if way != "copy" and not side.agrees():
            raise SystemExit(f"FELL SHORT: {way}: what landed is not what was sent")
    warm: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(1, repeats + 1):
        for way in WAYS:
            warm[way].append(side.take_part(way, repeat))
    return cold, warm


def show(console: Console, num_bytes: int, cold: dict[str, float], warm: dict[str, list[float]]) -> float:
    """Print the table; the ratio of direct to copy."""
    table = Table(title=f"{num_bytes / 1e9:.3f} GB between two processes of one device: median (range)")
    for column in ("way", "cold ms", "warm ms", "GB/s", "of a copy"):
        table.add_column(column, justify="right")
    ratio = {way: [c / s for s, c in zip(warm[way], warm["copy"])] for way in WAYS}
    for way in WAYS:
        rates = [num_bytes / s / 1e9 for s in warm[way]]
        cells = [f"{1e3 * cold[way]:.1f}", spread([1e3 * s for s in warm[way]]), spread(rates)]
        table.add_row(way, *cells, spread(ratio[way]))
    console.print(table)
    return statistics.median(ratio["direct"])


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--hidden", type=int, default=2560)
    parser.add_argument("--bucket-mib", type=float, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--least-ratio", type=float, default=LEAST_RATIO, help="of direct by a copy")
    parser.add_argument("--json", type=Path, help="write every repeat's seconds there")
    parser.add_argument("--peer-port", type=int, help=argparse.SUPPRESS)  # this process is the worker
    return parser.parse_args()


def main() -> int:
    options = read_options()
    torch.set_num_threads(1)
    if options.peer_port is not None:
        run(Side(WORKER, options.peer_port, options), options.repeats)
        return 0
    port = free_port()
    peer = subprocess.Popen([sys.executable, *sys.argv, "--peer-port", str(port)])
    try:
        side = Side(TRAINER, port, options)
        cold, warm = run(side, options.repeats)
        if peer.wait(TIMEOUT_S):
            return 1
    finally:
        peer.kill()
    reached = show(Console(width=120), side.num_bytes, cold, warm)
    if options.json:
        options.json.write_text(json.dumps({"num_bytes": side.num_bytes, "cold": cold, "warm": warm}, indent=1) + "\n")
    if reached < options.least_ratio:
        print(f"FELL SHORT: direct reaches {reached:.2f} of a bare copy, {options.least_ratio:g} are asked for")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
