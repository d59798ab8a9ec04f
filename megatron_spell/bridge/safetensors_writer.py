"""Writes a safetensors file box by box, straight to where each element belongs in the file.

The file format (safetensors): u64 length of the header, a JSON header `{name: {dtype, shape, data_offsets}}`, raw
little-endian bytes. The header comes first, so a writer must know all shapes before the first box. Nothing is mapped
into memory: a full disk is an error of a write call.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from megatron_spell.bridge.boxes import Box
from megatron_spell.bridge.hf_files import FolderError, Shape, first_line, raw_bytes

COPY_BYTES = 8 * 2**20
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class SafetensorsWriter:
    """One safetensors file whose tensors are put box by box, in any order; a context manager.

    `shapes` are the tensors to come. Leaving the block checks that every element came, and syncs the file to the disk.
    Values that are not contiguous, of another dtype or on a GPU are copied, `max_copy_bytes` at a time.
    Raises FolderError.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, Shape], dtype: torch.dtype, *, max_copy_bytes: int = COPY_BYTES
    ):
        if dtype not in _DTYPE_NAMES:
            raise FolderError(f"{path}: dtype {dtype} is not written; use float32, bfloat16, float16 or float64")
        self._path, self._shapes, self._dtype = path, dict(shapes), dtype
        self._max_copied = max(1, max_copy_bytes // dtype.itemsize)
        self._left = {name: prod(shape) for name, shape in self._shapes.items()}  # elements to come
        self._came: dict[str, list[Box]] = defaultdict(list)  # of the tensors that are not complete
        header, self._offsets = self._header()
        with self._named():
            self._file = path.open("wb", buffering=0)
            _pwrite(self._file.fileno(), memoryview(header), 0)

    def _header(self) -> tuple[bytes, dict[str, int]]:
        """The bytes before the tensors, and where in the file each tensor begins."""
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        offsets, at = {}, 0
        for name, shape in self._shapes.items():
            stop = at + prod(shape) * self._dtype.itemsize
            header[name] = {"dtype": _DTYPE_NAMES[self._dtype], "shape": list(shape), "data_offsets": [at, stop]}
            offsets[name], at = at, stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes, as the library writes them
        return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + at for name, at in offsets.items()}

    def put_box(self, name: str, box: Box, values: torch.Tensor) -> None:
        """Write `values`, converted to the file's dtype, as the elements `box` of a tensor."""
        self._check(name, box, values)
        ready = values.is_contiguous() and values.dtype == self._dtype and values.device.type == "cpu"
        whole = Box.whole(box.shape)
        with self._named(f"tensor {name} "):
            for part in [whole] if ready else whole.pieces(self._max_copied):
                self._write(name, part.moved(whole.start, box.start), raw_bytes(values[part.index], self._dtype))
        self._left[name] -= box.num_elements
        self._came[name].append(box)
        if not self._left[name]:
            del self._came[name]

    def _check(self, name: str, box: Box, values: torch.Tensor) -> None:
        shape = self._shapes.get(name)
        if shape is None:
            raise FolderError(f"{self._path}: tensor {name} was not announced")
        if tuple(values.shape) != box.shape:
            raise FolderError(f"{self._path}: {name}{box} came with values of shape {tuple(values.shape)}")
        if len(box.stop) != len(shape) or any(a > b for a, b in zip(box.stop, shape)):
            raise FolderError(f"{self._path}: {name}{box} is outside of the shape {shape} that was announced")
        if not self._left[name] or any(box.intersect(other) for other in self._came[name]):
            raise FolderError(f"{self._path}: {name}{box} came twice")

    def _write(self, name: str, box: Box, content: np.ndarray) -> None:
        """Write the bytes of a box: a run of the file for each of its rows, one where it has whole rows."""
        starts, run = _runs(self._shapes[name], box)
        size, base = run * self._dtype.itemsize, self._offsets[name]
        places = (base + starts * self._dtype.itemsize).tolist()
        descriptor, view = self._file.fileno(), content.data
        for number, place in enumerate(places):
            _pwrite(descriptor, view[number * size : (number + 1) * size], place)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()

    def _finish(self) -> None:
        missing = [name for name, left in self._left.items() if left]
        if missing and len(missing) == len(self._left):
            raise FolderError(f"{self._path}: none of its tensors came whole, the first is {min(missing)}")
        if missing:
            first = min(missing)
            part = f", {self._left[first]} elements of it" if first in self._came else ""
            raise FolderError(f"{self._path}: {len(missing)} tensors did not come, the first is {first}{part}")
        with self._named():
            os.fsync(self._file.fileno())

    @contextmanager
    def _named(self, what: str = "") -> Iterator[None]:
        """What the system refuses, as a FolderError."""
        try:
            yield
        except OSError as error:
            raise FolderError(f"{self._path}: {what}cannot be written: {first_line(error)}") from None


def _pwrite(descriptor: int, content: memoryview, place: int) -> None:
    written = os.pwrite(descriptor, content, place)
    while written < len(content):  # a call writes 2 GiB at most, and less where a disk becomes full
        written += os.pwrite(descriptor, content[written:], place + written)


def _runs(shape: Shape, box: Box) -> tuple[np.ndarray, int]:
    """Where the runs of a box begin in the tensor (int64 [num_runs], elements) and how many elements one has."""
    last = max((dim for dim, size in enumerate(shape) if box.shape[dim] != size), default=0)
    strides = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
    starts = np.zeros((), np.int64)
    for dim in range(last):
        starts = starts[..., None] + np.arange(box.start[dim], box.stop[dim]) * strides[dim]
    if not shape:
        return starts.reshape(1), 1
    return starts.reshape(-1) + box.start[last] * strides[last], box.shape[last] * strides[last]
