"""One process of the folder test, `folder_rank.py FOLDER OUT MESH DTYPE`: all ranks read FOLDER and write OUT."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_spell.bridge.export import FolderPlan, gather_to_writer
from megatron_spell.bridge.hf_files import read_segments
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes, trainer_inventory, trainer_shapes
from megatron_spell.bridge.transports.base import peer_names
from megatron_spell.bridge.transports.gloo import GroupTransport
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh

TIMEOUT_S = 60
BUCKET_BYTES, MAX_SHARD_BYTES, WRITERS = 20_000, 150_000, (2, 0)


def main(folder: Path, out: Path, mesh: Mesh, dtype: torch.dtype) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_S))
    rank, size, shape = dist.get_rank(), dist.get_world_size(), ModelShape.load(folder)
    assert mesh.world_size == size
    own = {n: torch.full(s, torch.nan, dtype=dtype) for n, s in trainer_shapes(shape, mesh, rank).items()}
    read_segments(folder, trainer_inventory(shape, mesh, rank), own, checkpoint_shapes(shape), piece_bytes=BUCKET_BYTES)
    held = {r: trainer_inventory(shape, mesh, r) for r, _ in mesh.ranks()}
    settings = {"writers": WRITERS, "max_shard_bytes": MAX_SHARD_BYTES}
    folder_plan = FolderPlan(held, checkpoint_inventory(shape), **settings)
    transport = GroupTransport(dist.group.WORLD, timeout_s=TIMEOUT_S, names=peer_names(size, 0))
    for name in ("first", "second"):  # a plan serves again
        carried = {"dtype": dtype, "copy_from": folder, "bucket_bytes": BUCKET_BYTES}
        gather_to_writer(out / name, own, folder_plan, transport, **carried)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Mesh(**json.loads(sys.argv[3])), getattr(torch, sys.argv[4]))
