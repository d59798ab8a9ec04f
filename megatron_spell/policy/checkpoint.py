"""A policy's checkpoint in Hugging Face coordinates, so that any layout can go on from it.

    weights/             the model as transformers and vLLM load it, in the policy's dtype
    main_weights/        the optimizer's float32 weights, where the policy's dtype is another
    adam_first_moment/   AdamW's state under the same tensor names
    adam_second_moment/
    policy.json          steps taken and skipped (in all, in a row), and the random states of every rank

Megatron's own distributed checkpoints are not used: with megatron-core 0.16.1 their optimizer state loads in no other
layout. Rank 0 writes what the others send straight to its place in the files (saving.py).
"""

import base64
import json
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor

from megatron_spell.bridge.hf_files import FolderError
from megatron_spell.layout.mesh import Mesh

WEIGHTS, MAIN_WEIGHTS = "weights", "main_weights"
FIRST_MOMENT, SECOND_MOMENT = "adam_first_moment", "adam_second_moment"
STATE_FILE = "policy.json"
TORCH, CUDA = "torch", "cuda"  # random states besides those of Megatron's tracker
FORMAT = "megatron_spell.policy/1"


def state_record(num_updates: int, mesh: Mesh, skipped_updates: tuple[int, int]) -> dict:
    """The contents of policy.json as of now. All ranks call it and give their random states."""
    return {
        "format": FORMAT,
        "num_updates": num_updates,
        "mesh": str(mesh),
        "random_states": gather_random_states(),
        "skipped_updates": skipped_updates,
    }


def write_state(folder: Path, record: dict) -> None:
    """Write policy.json. Raises FolderError."""
    try:
        (folder / STATE_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise FolderError(f"{folder / STATE_FILE}: cannot be written: {error}") from None


def read_state(folder: Path) -> dict:
    """The checked contents of policy.json. Raises FolderError."""
    file = folder / STATE_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FolderError(f"{file}: cannot be read: {error}; give the folder of a saved policy") from None
    known = isinstance(record, dict) and record.get("format") == FORMAT
    if not known or not isinstance(record.get("num_updates"), int) or not isinstance(record.get("random_states"), list):
        raise FolderError(f"{file}: is not of the format {FORMAT}; give the folder of a saved policy")
    return record


def gather_random_states() -> list[dict[str, str]]:
    """Every rank's generator states, base64, by name: torch's own and those Megatron keeps for parallel regions."""
    mine = {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in _random_states().items()}
    everyone: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def restore_random_states(record: dict, mesh: Mesh) -> None:
    """Take up this rank's random states; in another layout they mean nothing, and the seeded ones stay."""
    if record.get("mesh") != str(mesh):
        return
    states = {name: _from_base64(text) for name, text in record["random_states"][dist.get_rank()].items()}
    torch.set_rng_state(states.pop(TORCH))
    if CUDA in states:
        torch.cuda.set_rng_state(states.pop(CUDA))
    get_cuda_rng_tracker().set_states(states)


def _random_states() -> dict[str, Tensor]:
    """All are host tensors; those of the tracker are a GPU's where there is one, and of another size than torch's."""
    own = {TORCH: torch.get_rng_state()}
    if torch.cuda.is_available():
        own[CUDA] = torch.cuda.get_rng_state()
    return own | get_cuda_rng_tracker().get_states()


def _from_base64(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
