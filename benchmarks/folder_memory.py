"""Memory and speed of reading a Hugging Face folder into two tensor-parallel ranks and of writing it back together.

    python benchmarks/folder_memory.py [--layers 8] [--bucket-mib 64 16] [--rounds 3] [--place DIR]

The folder has random bfloat16 weights, among them an embedding of 151,936 x 2,048 (594 MiB). Two processes read their
shards (tp = 2, padded vocabulary or not, fused and split parameters) and write the folder again over gloo; what is
written must equal the source byte for byte. Memory is anonymous memory above the shard, the larger of both ranks, in
a round of its own; the shard is touched beforehand, so nothing hides in it. Both are metered with bfloat16 tensors and
with float32 ones, which are converted on the way. As a control the way of old is metered too: whole tensors assembled
before they are written. Times are wall-clock, medians of rounds in which a plain read of the
same files (once by each rank's share) and a plain copy of them, synced like ours, take turns with ours. Exit code 1
when memory passes two buckets or a byte differs.
"""

import argparse
import filecmp
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from resident import AnonPeak
from rich.console import Console
from rich.table import Table

from megatron_spell.bridge.boxes import Box
from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.export import FolderPlan, gather_to_writer
from megatron_spell.bridge.hf_files import read_segments
from megatron_spell.bridge.hf_folders import write_hf_folder
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes, trainer_inventory, trainer_shapes
from megatron_spell.bridge.transports.base import peer_names
from megatron_spell.bridge.transports.gloo import GroupTransport
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh

VOCAB, DTYPE, TIMEOUT_S = 151_936, torch.bfloat16, 300.0
MESH = Mesh(tp=2)
MAX_SHARD_BYTES = 2**30


def make_folder(folder: Path, num_layers: int) -> ModelShape:
    """A folder of drawn weights, made piece by piece."""
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": 2048,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 6144,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
        "hidden_act": "silu",
        "dtype": "bfloat16",
    }
    source = folder.with_name("config")
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    shape = ModelShape.load(source)
    settings = {"copy_from": source, "max_shard_bytes": MAX_SHARD_BYTES}
    write_hf_folder(folder, _drawn(shape), checkpoint_shapes(shape), DTYPE, **settings)
    return shape


def _drawn(shape: ModelShape) -> Iterator[tuple[str, Box, torch.Tensor]]:
    for name, size in checkpoint_shapes(shape).items():
        for box in Box.whole(size).pieces(2**24):
            yield name, box, torch.randint(-(2**15), 2**15, box.shape, dtype=torch.int16).view(DTYPE)


def run_rank(rank: int, place: Path, bucket_bytes: int, rounds: int) -> None:
    """One of the two; what it measures goes to a file of its own."""
    torch.set_num_threads(1)
    address, limit = f"file://{place}/meet{bucket_bytes}", timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=MESH.world_size, timeout=limit)
    one = _Rank(rank, place, bucket_bytes)
    measured = one.memory()
    for _ in range(rounds):
        for what, seconds in one.times().items():
            measured.setdefault(what, []).append(seconds)
    (place / f"rank{rank}.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


class _Rank:
    def __init__(self, rank: int, place: Path, bucket_bytes: int):
        self.rank, self.place, self.bucket_bytes = rank, place, bucket_bytes
        self.source = place / "model"
        self.shape = ModelShape.load(self.source)
        self.inventory = trainer_inventory(self.shape, MESH, rank)
        held = {r: trainer_inventory(self.shape, MESH, r) for r, _ in MESH.ranks()}
        self.plan = FolderPlan(held, checkpoint_inventory(self.shape), max_shard_bytes=MAX_SHARD_BYTES)
        sizes = trainer_shapes(self.shape, MESH, rank)
        self.own = {name: torch.ones(size, dtype=DTYPE) for name, size in sizes.items()}
        names = peer_names(MESH.world_size, 0)
        self.transport = GroupTransport(dist.group.WORLD, timeout_s=TIMEOUT_S, names=names)

    def memory(self) -> dict:
        found = {"whole tensors bytes": self._peak(self.assemble)}
        found |= {"import bytes": self._peak(self.read), "export bytes": self._peak(self.write)}
        found["equal"] = self.rank != 0 or self._is_equal()
        plain, self.own = self.own, {name: tensor.float() for name, tensor in self.own.items()}
        found["float32 import bytes"] = self._peak(self.read)
        found["float32 export bytes"] = self._peak(self.write)
        self.own = plain
        return found

    def _peak(self, deed: Callable[[], None]) -> int:
        self._clear()
        dist.barrier()
        with AnonPeak() as peak:
            deed()
        return peak.num_bytes

    def times(self) -> dict[str, float]:
        ways = {"import": self.read, "plain read": self.plain_read, "export": self.write, "plain copy": self.plain_copy}
        return {f"{what} seconds": self._seconds(deed) for what, deed in ways.items()}

    def read(self) -> None:
        shapes = checkpoint_shapes(self.shape)
        read_segments(self.source, self.inventory, self.own, shapes, piece_bytes=self.bucket_bytes)

    def write(self) -> None:
        carried = {"dtype": DTYPE, "copy_from": self.source, "bucket_bytes": self.bucket_bytes}
        gather_to_writer(self.place / "out", self.own, self.plan, self.transport, **carried)

    def assemble(self) -> None:
        carried = {"dtype": DTYPE, "bucket_bytes": self.bucket_bytes}
        moves = self.plan.moves(DTYPE)
        if self.rank:
            Sender(moves, self.rank, self.own, **carried).run(self.transport)
        else:
            for _ in Receiver(moves, self.rank, sources=self.own, **carried).tensors(self.transport):
                pass

    def plain_read(self) -> None:
        """Every rank's half of the bytes, into memory that is there already."""
        into = memoryview(bytearray(2**24))
        for file in self.source.glob("*.safetensors"):
            with file.open("rb", buffering=0) as content:
                half = file.stat().st_size // MESH.world_size
                content.seek(self.rank * half)
                left = half
                while left > 0:
                    left -= content.readinto(into[: min(left, len(into))])

    def plain_copy(self) -> None:
        if self.rank == 0:
            out = self.place / "copy"
            out.mkdir()
            for file in self.source.glob("*.safetensors"):
                with file.open("rb") as content, (out / file.name).open("wb") as copy:
                    shutil.copyfileobj(content, copy, 2**24)
                    copy.flush()
                    os.fsync(copy.fileno())

    def _seconds(self, deed: Callable[[], None]) -> float:
        self._clear()
        dist.barrier()
        began = time.perf_counter()
        deed()
        dist.barrier()
        return time.perf_counter() - began

    def _clear(self) -> None:
        if self.rank == 0:
            for name in ("out", "copy"):
                shutil.rmtree(self.place / name, ignore_errors=True)
            os.sync()

    def _is_equal(self) -> bool:
        files = [file.name for file in self.source.glob("*.safetensors")]
        _, different, failed = filecmp.cmpfiles(self.source, self.place / "out", files, shallow=False)
        return not different and not failed


def measure(place: Path, bucket_bytes: int, rounds: int) -> dict:
    """Of both ranks the larger, of the rounds the median."""
    torch.multiprocessing.spawn(run_rank, (place, bucket_bytes, rounds), nprocs=MESH.world_size)
    both = [json.loads((place / f"rank{rank}.json").read_text()) for rank in range(MESH.world_size)]
    found = {key: max(one[key] for one in both) for key in both[0] if key.endswith("bytes")}
    for key in (key for key in both[0] if key.endswith("seconds")):
        found[key] = statistics.median(map(max, zip(*(one[key] for one in both))))
    return found | {"equal": all(one["equal"] for one in both)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--bucket-mib", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", type=Path, help="where the folders are made; a temporary folder without it")
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(dir=options.place) as folder:
        place = Path(folder)
        make_folder(place / "model", options.layers)
        size = sum(file.stat().st_size for file in (place / "model").glob("*.safetensors"))
        table = Table(title=f"{size / 2**30:.2f} GiB at {MESH}; MiB above the shard, seconds")
        for column in ("bucket", "import", "export", "of float32", "allowed", "whole tensors", "bytes equal"):
            table.add_column(column, justify="right")
        for column in ("import s", "plain read s", "export s", "plain copy s", "copy / export"):
            table.add_column(column, justify="right")
        for bucket_mib in options.bucket_mib:
            found = measure(place, bucket_mib * 2**20, options.rounds)
            ours = (f"{kind}{what} bytes" for kind in ("", "float32 ") for what in ("import", "export"))
            good &= found["equal"] and max(found[key] for key in ours) <= 2 * bucket_mib * 2**20
            table.add_row(*_cells(found, bucket_mib))
        Console(width=140).print(table)
    return int(not good)


def _cells(found: dict, bucket_mib: int) -> list[str]:
    ways = ("import", "export", "float32 import", "float32 export", "whole tensors")
    read, wrote, *of_float32, whole = (f"{found[f'{way} bytes'] / 2**20:.0f}" for way in ways)
    memory = [read, wrote, " and ".join(of_float32), str(2 * bucket_mib), whole]
    times = [f"{found[f'{what} seconds']:.2f}" for what in ("import", "plain read", "export", "plain copy")]
    share = found["plain copy seconds"] / found["export seconds"]
    equal = "yes" if found["equal"] else "NO"
    return [str(bucket_mib), *memory, equal, *times, f"{share:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
