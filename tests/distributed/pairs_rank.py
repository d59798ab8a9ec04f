"""One of the processes that carry weights between all pairs of layouts: `pairs_rank.py OUT_FOLDER`."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places
from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.inventory import checkpoint_inventory
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.transports.gloo import GroupTransport
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from tests.distributed.layout_pairs import PAIRS, Pair
from tests.distributed.plain_gather import gathered
from tests.unit.bridge.made_engines import engine_laid_out
from tests.unit.bridge.made_weights import inventories, laid_out, made_weights

RANK = int(os.environ["RANK"])
BUCKET_BYTES = 20_000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Tensors = dict[str, torch.Tensor]


def targets_of(pair: Pair) -> tuple[dict[int, Inventory], list[range]]:
    """Inventories by rank, and the ranks of each link; trainers of another layout are the sources themselves."""
    shape, first = pair.shape, Mesh(**pair.trainer).world_size
    if pair.other is not None:
        other = Mesh(**pair.other)
        return inventories(shape, other), [range(other.world_size)]
    if pair.engine is None:
        return {first: checkpoint_inventory(shape)}, [range(first, first + 1)]
    own = [engine_inventory(shape, place) for place in engine_places(shape, EngineMesh(**pair.engine))]
    starts = [first + i * len(own) for i in range(pair.num_engines)]
    wanted = {start + i: inventory for start in starts for i, inventory in enumerate(own)}
    return wanted, [range(start, start + len(own)) for start in starts]


def expected_of(pair: Pair, shards: list[Tensors | None]) -> Tensors | None:
    """What this rank must hold: the whole tensors gathered from all trainers, rounded as on the wire, then sliced."""
    shape, mesh = pair.shape, Mesh(**pair.trainer)
    wire = DTYPES[pair.dtypes.split()[-1]]
    arrays = {r: {n: t.float().numpy() for n, t in shards[r].items()} for r in range(mesh.world_size)}
    whole = gathered(shape, mesh, arrays)
    place = RANK - mesh.world_size
    if pair.other is not None:
        other = Mesh(**pair.other)
        found = laid_out(shape, whole, other, RANK) if RANK in range(other.world_size) else None
    elif pair.engine is None:
        found = whole if place == 0 else None
    else:
        engine = EngineMesh(**pair.engine)
        inside = 0 <= place < engine.num_workers * pair.num_engines
        found = engine_laid_out(shape, whole, engine, place % engine.num_workers) if inside else None
    return found and {name: torch.from_numpy(value.copy()).to(wire) for name, value in found.items()}


def carried(
    pair: Pair, number: int, held: Tensors | None, wanted: Tensors | None, transport: GroupTransport
) -> Tensors:
    """Run the bridge, link by link, and give what landed."""
    mesh, (targets, links) = Mesh(**pair.trainer), targets_of(pair)
    moves = plan(inventories(pair.shape, mesh), targets)
    settings = {"dtype": DTYPES[pair.dtypes.split()[-1]], "bucket_bytes": BUCKET_BYTES}
    found = {name: torch.full_like(tensor, torch.nan) for name, tensor in (wanted or {}).items()}
    for ranks in links:
        part = moves.into(ranks)
        if RANK in ranks:
            Receiver(part, RANK, **settings, sources=held).into(transport, found, check=number)
        elif held is not None:
            Sender(part, RANK, held, **settings).run(transport, check=number)
    return found


def fault_of(pair: Pair, number: int, transport: GroupTransport, *, planted: bool = False) -> str:
    """The first tensor of this rank that differs from the full gather in any bit; nothing where all agree."""
    held = None
    if RANK in range(Mesh(**pair.trainer).world_size):
        arrays = laid_out(pair.shape, made_weights(pair.shape, seed=number), Mesh(**pair.trainer), RANK)
        held = {n: torch.from_numpy(v.copy()).to(DTYPES[pair.dtypes.split()[0]]) for n, v in arrays.items()}
    shards: list = [None] * dist.get_world_size()
    dist.all_gather_object(shards, held)
    wanted = expected_of(pair, shards)
    if planted and held is not None:
        held["decoder.final_layernorm.weight"][0] += 1  # after the gather
    found = carried(pair, number, held, wanted, transport)
    for name, tensor in (wanted or {}).items():
        padding = tensor.isnan()
        if not torch.equal(found[name].isnan(), padding) or not torch.equal(found[name][~padding], tensor[~padding]):
            return f"{name} on rank {RANK} is not what a full gather gives"
    return ""


def main(out: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    transport = GroupTransport(dist.new_group(backend="gloo"), timeout_s=60)
    faults = {pair.name: fault_of(pair, number, transport) for number, pair in enumerate(PAIRS)}
    faults["planted"] = fault_of(PAIRS[2], 0, transport, planted=True)
    (out / f"{RANK}.json").write_text(json.dumps(faults))
    transport.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
