"""What a Hugging Face folder holds, whatever the model: its tensors by name, read piece by piece."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from megatron_spell.bridge.boxes import Box
from megatron_spell.bridge.hf_files import (
    INDEX_FILE,
    PIECE_BYTES,
    SINGLE_FILE,
    FolderError,
    Shape,
    first_line,
    read_index,
)

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies, and its shape and dtype there."""

    file: Path
    shape: Shape
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder, from the headers of its files and in their order.

    Raises FolderError, also for a tensor that is not of floating point: it could not be given another dtype.
    """
    found: dict[str, StoredTensor] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                found |= {name: _stored(file, name, opened) for name in opened.offset_keys()}
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from None
    if (folder / INDEX_FILE).is_file():
        return _as_indexed(folder, found)
    return found


def read_boxes(
    stored: Mapping[str, StoredTensor], piece_bytes: int = PIECE_BYTES
) -> Iterator[tuple[str, Box, torch.Tensor]]:
    """(name, box, values as they are stored) in the given order, at most `piece_bytes` at a time. FolderError.

    The values are views of the mapped file. Each file is opened once if its tensors stand together.
    """
    for file, names in groupby(stored, key=lambda name: stored[name].file):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in names:
                    yield from _boxes(opened, name, stored[name], piece_bytes)
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from None


def _boxes(
    opened: safe_open, name: str, stored: StoredTensor, piece_bytes: int
) -> Iterator[tuple[str, Box, torch.Tensor]]:
    if not stored.num_elements:
        return
    content = opened.get_slice(name)
    for box in Box.whole(stored.shape).pieces(max(1, piece_bytes // stored.dtype.itemsize)):
        yield name, box, content[box.index]


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX_FILE).is_file():
        return sorted({folder / file for file in read_index(folder / INDEX_FILE).values()})
    if not (folder / SINGLE_FILE).is_file():
        raise FolderError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}")
    return [folder / SINGLE_FILE]


def _as_indexed(folder: Path, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    weight_map = read_index(folder / INDEX_FILE)
    for name, file in weight_map.items():
        if name not in found or found[name].file.name != file:
            raise FolderError(f"{folder / file}: lacks tensor {name}, which {INDEX_FILE} says it holds")
    return {name: stored for name, stored in found.items() if name in weight_map}


def _unreadable(file: Path, error: Exception) -> FolderError:
    return FolderError(f"{file}: cannot be read: {first_line(error)}; fetch or write it again")


def _stored(file: Path, name: str, opened: safe_open) -> StoredTensor:
    piece = opened.get_slice(name)
    dtype = _DTYPES.get(piece.get_dtype())
    if dtype is None:
        raise FolderError(f"{file}: tensor {name} is of {piece.get_dtype()}; only floating-point weights are read")
    return StoredTensor(file, tuple(piece.get_shape()), dtype)
