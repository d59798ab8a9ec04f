"""A policy's checkpoint in Hugging Face coordinates, so that any layout can go on from it.

    weights/             the model as transformers and vLLM load it, in the policy's dtype
    main_weights/        the optimizer's float32 weights, where the policy's dtype is another
    adam_first_moment/   AdamW's state under the same tensor names
    adam_second_moment/
    policy.json          steps taken and skipped (in all, in a row), and the random states of every rank

Megatron's own distributed checkpoints are not used: with megatron-core 0.16.1 their optimizer state loads in no other
layout. Whole tensors are assembled on rank 0, a few at a time, and streamed to the file.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor

from megatron_spell.bridge.export import gather_to_writer
from megatron_spell.bridge.hf_files import CheckpointError
from megatron_spell.bridge.inventory import checkpoint_shapes, trainer_inventory
from megatron_spell.bridge.transports.base import peer_names
from megatron_spell.bridge.transports.gloo import GroupTransport
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import platform

WEIGHTS, MAIN_WEIGHTS = "weights", "main_weights"
FIRST_MOMENT, SECOND_MOMENT = "adam_first_moment", "adam_second_moment"
STATE_FILE = "policy.json"
FORMAT = "megatron_spell.policy/1"
WRITER = 0


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    shape: ModelShape,
    mesh: Mesh,
    *,
    dtype: torch.dtype,
    timeout_s: float,
    companions: Path | None = None,
) -> None:
    """Write this rank's `tensors` (by local name), with those of all ranks, as a new Hugging Face `folder`.

    All ranks call it; rank 0 writes. Config and tokenizer files are copied from `companions`. Raises CheckpointError
    on every rank when the folder cannot be written, TransportError when a rank is lost.
    """
    inventories = {rank: trainer_inventory(shape, mesh, rank) for rank, _ in mesh.ranks()}
    transport = GroupTransport(dist.group.WORLD, timeout_s=timeout_s, names=peer_names(mesh.world_size, 0))
    shapes = checkpoint_shapes(shape)
    gather_to_writer(folder, tensors, inventories, shapes, transport, dtype=dtype, copy_from=companions)


def raise_together(fault: str | None) -> None:
    """Tell every rank what went wrong on rank 0. Raises CheckpointError on all of them, or returns on all."""
    told = [fault]
    dist.broadcast_object_list(told, src=WRITER)
    if told[0] is not None:
        raise CheckpointError(told[0])


def write_state(folder: Path, num_updates: int, mesh: Mesh, skipped_updates: tuple[int, int]) -> None:
    """Write policy.json on rank 0; all ranks give their random states. Raises CheckpointError on all ranks."""
    states = gather_random_states()
    fault = None
    if dist.get_rank() == WRITER:
        record = {"format": FORMAT, "num_updates": num_updates, "mesh": str(mesh), "random_states": states}
        record["skipped_updates"] = skipped_updates
        try:
            (folder / STATE_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            fault = f"{folder / STATE_FILE}: cannot be written: {error}"
    raise_together(fault)


def read_state(folder: Path) -> dict:
    """The checked contents of policy.json. Raises CheckpointError."""
    file = folder / STATE_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}; give the folder of a saved policy") from None
    known = isinstance(record, dict) and record.get("format") == FORMAT
    if not known or not isinstance(record.get("num_updates"), int) or not isinstance(record.get("random_states"), list):
        raise CheckpointError(f"{file}: is not of the format {FORMAT}; give the folder of a saved policy")
    return record


def gather_random_states() -> list[dict[str, str]]:
    """Every rank's generator states, base64, by name: torch's own and those Megatron keeps for parallel regions."""
    names = sorted(_random_states())
    mine = torch.stack([_random_states()[name].cpu() for name in names]).to(platform.device())
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return [
        {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in zip(names, states.cpu())}
        for states in everyone
    ]


def restore_random_states(record: dict, mesh: Mesh) -> None:
    """Take up this rank's random states; in another layout they mean nothing, and the seeded ones stay."""
    if record.get("mesh") != str(mesh):
        return
    states = {name: _from_base64(text) for name, text in record["random_states"][dist.get_rank()].items()}
    torch.set_rng_state(states.pop("torch"))
    get_cuda_rng_tracker().set_states({name: state.to(platform.device()) for name, state in states.items()})


def _random_states() -> dict[str, Tensor]:
    return {"torch": torch.get_rng_state(), **get_cuda_rng_tracker().get_states()}


def _from_base64(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
