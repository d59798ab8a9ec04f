"""A policy's checkpoint in Hugging Face coordinates, so that any layout can go on from it.

    weights/             the model as transformers and vLLM load it, in the policy's dtype
    main_weights/        the optimizer's float32 weights, where the policy's dtype is another
    adam_first_moment/   AdamW's state under the same tensor names
    adam_second_moment/
    policy.json          steps taken and the random states of every rank

Megatron's own distributed checkpoints are not used: with megatron-core 0.16.1 their optimizer state loads in no other
layout. Whole tensors are assembled on rank 0, one at a time, and streamed to the file.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor

from megatron_spell.bridge.hf_files import CheckpointError, write_hf_folder
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes, trainer_inventory
from megatron_spell.bridge.planner import Move, Plan, plan
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import platform

WEIGHTS, MAIN_WEIGHTS = "weights", "main_weights"
FIRST_MOMENT, SECOND_MOMENT = "adam_first_moment", "adam_second_moment"
STATE_FILE = "policy.json"
FORMAT = "megatron_spell.policy/1"
WRITER = 0


class Collector:
    """Assembles whole Hugging Face tensors on rank 0 out of every rank's boxes; all ranks take part in every call."""

    def __init__(self, shape: ModelShape, mesh: Mesh) -> None:
        self.shapes = checkpoint_shapes(shape)
        sources = {rank: trainer_inventory(shape, mesh, rank) for rank, _ in mesh.ranks()}
        self._plan: Plan = plan(sources, {WRITER: checkpoint_inventory(shape)})

    def write(
        self, folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, companions: Path | None = None
    ) -> None:
        """Write the model's tensors, given as this rank's `tensors` by local name, to a new Hugging Face `folder`.

        Config and tokenizer files are copied from `companions`. Raises CheckpointError on every rank when rank 0 cannot
        write.
        """
        pieces = self._whole_tensors(tensors)
        fault = None
        if dist.get_rank() == WRITER:
            try:
                write_hf_folder(folder, pieces, self.shapes, dtype, copy_from=companions)
            except CheckpointError as error:
                fault = str(error)
        for _ in pieces:  # what was not taken must be, or the ranks that send it would wait
            pass
        raise_together(fault)

    def _whole_tensors(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) on the writer, nothing on the others; the same sequence of messages on all."""
        for name, moves in groupby(self._plan.moves, key=lambda move: move.hf_name):
            if dist.get_rank() == WRITER:
                yield name, self._assemble(name, moves, tensors)
            else:
                for move in moves:
                    if move.src_rank == dist.get_rank():
                        dist.send(_piece(move, tensors), WRITER)

    def _assemble(self, name: str, moves: Iterator[Move], tensors: Mapping[str, Tensor]) -> Tensor:
        like = next(iter(tensors.values()))
        whole = torch.empty(self.shapes[name], dtype=like.dtype, device=like.device)
        for move in moves:
            if move.src_rank == WRITER:
                piece = _piece(move, tensors)
            else:
                piece = torch.empty(move.hf_box.shape, dtype=like.dtype, device=like.device)
                dist.recv(piece, move.src_rank)
            whole[move.hf_box.index] = piece
        return whole


def raise_together(fault: str | None) -> None:
    """Tell every rank what went wrong on rank 0. Raises CheckpointError on all of them, or returns on all."""
    told = [fault]
    dist.broadcast_object_list(told, src=WRITER)
    if told[0] is not None:
        raise CheckpointError(told[0])


def write_state(folder: Path, num_updates: int, mesh: Mesh) -> None:
    """Write policy.json on rank 0; all ranks give their random states. Raises CheckpointError on all ranks."""
    states = gather_random_states()
    fault = None
    if dist.get_rank() == WRITER:
        record = {"format": FORMAT, "num_updates": num_updates, "mesh": str(mesh), "random_states": states}
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


def _piece(move: Move, tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors[move.src_name][move.src_box.index].contiguous()
