"""Give rows of tables in a safetensors file new values, or more rows; everything else is copied bytes for bytes.

Only headers and the rows in hand are in memory. numpy has no bfloat16, and no tensor library is needed for the rest, so
the format is read here: u64 length of the header, a JSON header {name: {dtype, shape, data_offsets}}, raw little-endian
bytes (https://github.com/huggingface/safetensors#format).
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tokenizer_tools.errors import CheckpointError, first_line

CHUNK_BYTES = 16 * 2**20
_STORED = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in `file`; `start` counts bytes from the beginning of the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    @property
    def row_bytes(self) -> int:
        return self.num_bytes // self.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class NewRows:
    """Values float [N, ...] of the rows from `first_row` on; a table that ends before them grows to hold them."""

    first_row: int
    values: np.ndarray


def read_header(file: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The tensors of a safetensors file in order of their bytes, and its metadata. Raises CheckpointError."""
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if size > min(_MAX_HEADER_BYTES, file.stat().st_size):
                raise ValueError("the header is longer than the file")
            header = json.loads(opened.read(size))
            metadata = header.pop("__metadata__", {})
            tensors = {name: _stored(file, name, entry, 8 + size) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is no safetensors file that can be read: {first_line(error)}") from None
    ordered = dict(sorted(tensors.items(), key=lambda pair: pair[1].start))
    _demand_gapless(file, ordered, 8 + size)
    return ordered, metadata


def _stored(file: Path, name: str, entry: dict[str, Any], data: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    return StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), data + start, stop - start)


def _demand_gapless(file: Path, ordered: Mapping[str, StoredTensor], data: int) -> None:
    at = data
    for tensor in ordered.values():
        if tensor.start != at:
            raise CheckpointError(f"{file} has a gap or an overlap before tensor {tensor.name}")
        at += tensor.num_bytes
    if at != file.stat().st_size:
        raise CheckpointError(f"{file} is {file.stat().st_size} bytes, its header says {at}; it is cut off or damaged")


def read_rows(tensor: StoredTensor, first: int, stop: int) -> np.ndarray:
    """float32 or float64 [stop - first, ...]. Raises CheckpointError for a dtype that holds no plain numbers."""
    dtype = _stored_dtype(tensor)
    with tensor.file.open("rb") as file:
        file.seek(tensor.start + first * tensor.row_bytes)
        raw = np.frombuffer(file.read((stop - first) * tensor.row_bytes), dtype=dtype)
    values = (raw.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == "BF16" else raw
    wide = values if tensor.dtype == "F64" else values.astype(np.float32, copy=False)
    return wide.reshape(stop - first, *tensor.shape[1:])


def mean_row(tensor: StoredTensor, num_rows: int) -> np.ndarray:
    """float64 [...]: the mean of the first `num_rows` rows, summed in float64."""
    step = max(1, CHUNK_BYTES // max(1, tensor.row_bytes))
    total = np.zeros(tensor.shape[1:])
    for first in range(0, num_rows, step):
        total += read_rows(tensor, first, min(first + step, num_rows)).sum(axis=0, dtype=np.float64)
    return total / num_rows


def rewrite(source: Path, target: Path, edits: Mapping[str, NewRows]) -> None:
    """Write `target` as `source` with these rows; synced to the disk. Raises CheckpointError."""
    tensors, metadata = read_header(source)
    shapes = {name: _grown(tensor, edits.get(name)) for name, tensor in tensors.items()}
    with source.open("rb") as old, target.open("wb") as new:
        new.write(_header(tensors, shapes, metadata))
        for name, tensor in tensors.items():
            if name in edits:
                _write_edited(old, new, tensor, edits[name])
            else:
                _copy(old, new, tensor.start, tensor.num_bytes)
        new.flush()
        os.fsync(new.fileno())


def _grown(tensor: StoredTensor, edit: NewRows | None) -> tuple[int, ...]:
    if edit is None:
        return tensor.shape
    if edit.first_row > tensor.shape[0]:
        raise CheckpointError(f"{tensor.name} has {tensor.shape[0]} rows; row {edit.first_row} would leave a gap")
    return (max(tensor.shape[0], edit.first_row + len(edit.values)), *tensor.shape[1:])


def _header(
    tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], metadata: dict[str, Any]
) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        size = tensor.num_bytes // prod(tensor.shape) * prod(shapes[name]) if tensor.num_bytes else 0
        header[name] = {"dtype": tensor.dtype, "shape": list(shapes[name]), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes, as the library writes them
    return len(text).to_bytes(8, "little") + text


def _write_edited(old: BinaryIO, new: BinaryIO, tensor: StoredTensor, edit: NewRows) -> None:
    _copy(old, new, tensor.start, edit.first_row * tensor.row_bytes)
    for chunk in _encoded(tensor, edit.values):
        new.write(chunk)
    behind = (edit.first_row + len(edit.values)) * tensor.row_bytes
    if behind < tensor.num_bytes:
        _copy(old, new, tensor.start + behind, tensor.num_bytes - behind)


def _encoded(tensor: StoredTensor, values: np.ndarray) -> Iterator[bytes]:
    """Rows as stored, rounded to nearest, some at a time: `values` may be one row broadcast to many."""
    if values.shape[1:] != tensor.shape[1:]:
        raise CheckpointError(f"{tensor.name} has rows of shape {tensor.shape[1:]}, not {values.shape[1:]}")
    step = max(1, CHUNK_BYTES // max(1, tensor.row_bytes))
    for first in range(0, len(values), step):
        part = values[first : first + step]
        if tensor.dtype == "BF16":
            bits = np.ascontiguousarray(part, dtype=np.float32).view(np.uint32)
            yield ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        else:
            yield part.astype(_stored_dtype(tensor)).tobytes()


def _stored_dtype(tensor: StoredTensor) -> np.dtype:
    if tensor.dtype not in _STORED:
        known = ", ".join(_STORED)
        raise CheckpointError(f"{tensor.file}: {tensor.name} is stored as {tensor.dtype}; rows can be made for {known}")
    return _STORED[tensor.dtype]


def _copy(old: BinaryIO, new: BinaryIO, start: int, num_bytes: int) -> None:
    old.seek(start)
    while num_bytes:
        chunk = old.read(min(num_bytes, CHUNK_BYTES))
        if not chunk:
            raise CheckpointError(f"{old.name} ended while it was copied")
        new.write(chunk)
        num_bytes -= len(chunk)
