"""Hugging Face safetensors folders: their names, their index, and reading only the boxes that a rank needs.

Files are mapped, never unpickled: what is read stays in the page cache and costs no memory of its own. Tensors are
taken in pieces all the same, because a copy to a GPU or to another dtype goes through memory.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from megatron_spell.bridge.boxes import Box, BridgeError, Inventory
from megatron_spell.bridge.stacks import is_stack, one_by_one

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 4 * 2**30
PIECE_BYTES = 64 * 2**20  # as the executor's bucket
_LARGEST_ITEMSIZE = 8  # of the dtypes that pass through here
# from a file's tensor to a local one: both names, both boxes (one may have a dim 0 of size 1 that the other lacks)
_Part = tuple[str, Box, str, Box]

Shape = tuple[int, ...]


class FolderError(BridgeError):
    """A folder that cannot be read or written; one line naming file and tensor."""


def read_segments(
    folder: Path,
    inventory: Inventory,
    tensors: Mapping[str, torch.Tensor],
    shapes: Mapping[str, Shape] | None = None,
    *,
    piece_bytes: int = PIECE_BYTES,
) -> None:
    """Fill `tensors` (by local name) with the boxes of `inventory`, converted to each tensor's dtype.

    Reads only those boxes, in pieces of at most `piece_bytes`. The experts of a layer may stand in tensors of their own
    or in one, on either side. `shapes` (see `checkpoint_shapes`) makes the size of every tensor in the files be checked
    as well; without it a tensor larger than the boxes goes unnoticed. Local elements outside the inventory (padding
    rows) stay as they are. Raises FolderError.
    """
    max_elements = max(1, piece_bytes // _LARGEST_ITEMSIZE)
    for file, parts in _by_file(folder, inventory).items():
        try:
            with safe_open(file, framework="pt") as opened:
                for part in parts:
                    _read_one(file, opened, part, tensors, (shapes or {}).get(part[0]), max_elements)
        except (SafetensorError, OSError) as error:
            raise FolderError(f"{file}: cannot be read: {first_line(error)}; fetch or write it again") from None


def _by_file(folder: Path, inventory: Inventory) -> dict[Path, list[_Part]]:
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if not index.is_file():
        if not single.is_file():
            raise FolderError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}")
        return {single: list(_parts(inventory))}
    weight_map = read_index(index)
    by_file: dict[Path, list[_Part]] = defaultdict(list)
    for part in _parts(inventory):
        if part[0] not in weight_map:
            raise FolderError(f"{index}: names no file for tensor {part[0]}")
        by_file[folder / weight_map[part[0]]].append(part)
    return by_file


def _parts(inventory: Inventory) -> Iterator[_Part]:
    for segment in inventory:
        theirs, own = (segment.hf_name, segment.hf_box), (segment.local_name, segment.local_box)
        if not is_stack(segment.hf_name) and not is_stack(segment.local_name):
            yield *theirs, *own
        else:
            yield from ((*a, *b) for a, b in zip(one_by_one(*theirs), one_by_one(*own), strict=True))


def read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index file. Raises FolderError."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        # a name with a folder in it could point outside of the checkpoint
        if not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FolderError(f"{index}: holds no weight_map of tensor names to file names") from None
    return weight_map


def _read_one(
    file: Path,
    opened: safe_open,
    part: _Part,
    tensors: Mapping[str, torch.Tensor],
    shape: Shape | None,
    max_elements: int,
) -> None:
    name, box, local_name, local_box = part
    try:
        stored = opened.get_slice(name)
    except SafetensorError:
        raise FolderError(f"{file}: lacks tensor {name}") from None
    found = tuple(stored.get_shape())
    if not _holds(found, box) or (shape is not None and found != shape):
        wanted = f"of shape {shape}" if shape is not None else f"that holds {box}"
        raise FolderError(f"{file}: tensor {name} has shape {found}, the model needs one {wanted}")
    local = tensors[local_name].detach()
    if not _holds(tuple(local.shape), local_box):
        place = f"{local_name}{local_box}"
        raise FolderError(f"{name}: belongs at {place}, that tensor has shape {tuple(local.shape)}")
    target, origin = local[local_box.index].view(box.shape), (0,) * len(box.start)
    for piece in box.pieces(max_elements):
        target[piece.moved(box.start, origin).index].copy_(stored[piece.index])


def _holds(shape: Shape, box: Box) -> bool:
    return len(shape) == len(box.stop) and all(a >= b for a, b in zip(shape, box.stop))


def raw_bytes(tensor: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """The elements as `dtype`, in the order in which a file holds them, as bytes (uint8 [num_bytes])."""
    plain = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy()


def shard_files(shapes: Mapping[str, Shape], itemsize: int, max_shard_bytes: int) -> dict[str, dict[str, Shape]]:
    """File name -> the tensors in it, in order; a tensor larger than `max_shard_bytes` gets a file of its own."""
    shards: list[dict[str, Shape]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        num_bytes = prod(shape) * itemsize
        if shards[-1] and filled + num_bytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += num_bytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def first_line(error: Exception) -> str:
    """A foreign error's text, without line breaks."""
    return " ".join(str(error).split())[:200]
