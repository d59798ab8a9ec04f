"""Hugging Face safetensors folders: read only the boxes a rank needs, write one tensor at a time; nothing is pickled.

The file format (safetensors): u64 length of the header, a JSON header `{name: {dtype, shape, data_offsets}}`, raw
little-endian bytes. The header comes first, so a writer must know all shapes before the first tensor.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from megatron_spell.bridge.boxes import BridgeError, Inventory, Segment
from megatron_spell.bridge.stacks import unstacked

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 4 * 2**30
# what stands beside the weights in a folder and belongs to the model
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model")
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}

Shape = tuple[int, ...]


class CheckpointError(BridgeError):
    """A folder that cannot be read or written; one line naming file and tensor."""


def read_segments(
    folder: Path,
    inventory: Inventory,
    tensors: Mapping[str, torch.Tensor],
    shapes: Mapping[str, Shape] | None = None,
) -> None:
    """Fill `tensors` (by local name) with the boxes of `inventory`, converted to each tensor's dtype.

    Reads only those boxes. `shapes` (see `checkpoint_shapes`) makes the size of every tensor in the files be checked
    as well; without it a tensor larger than the boxes goes unnoticed. Local elements outside the inventory (padding
    rows) stay as they are. Raises CheckpointError.
    """
    for file, segments in _by_file(folder, unstacked(inventory)).items():
        try:
            with safe_open(file, framework="pt") as opened:
                for segment in segments:
                    _read_one(file, opened, segment, tensors, (shapes or {}).get(segment.hf_name))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read: {_first_line(error)}; fetch or write it again") from None


def _by_file(folder: Path, inventory: Inventory) -> dict[Path, list[Segment]]:
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if not index.is_file():
        if not single.is_file():
            raise CheckpointError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}")
        return {single: list(inventory)}
    weight_map = read_index(index)
    by_file: dict[Path, list[Segment]] = defaultdict(list)
    for segment in inventory:
        if segment.hf_name not in weight_map:
            raise CheckpointError(f"{index}: names no file for tensor {segment.hf_name}")
        by_file[folder / weight_map[segment.hf_name]].append(segment)
    return by_file


def read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index file. Raises CheckpointError."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        # a name with a folder in it could point outside of the checkpoint
        if not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: holds no weight_map of tensor names to file names") from None
    return weight_map


def _read_one(
    file: Path, opened: safe_open, segment: Segment, tensors: Mapping[str, torch.Tensor], shape: Shape | None
) -> None:
    try:
        piece = opened.get_slice(segment.hf_name)
    except SafetensorError:
        raise CheckpointError(f"{file}: lacks tensor {segment.hf_name}") from None
    found, stop = tuple(piece.get_shape()), segment.hf_box.stop
    if len(found) != len(stop) or any(a < b for a, b in zip(found, stop)) or (shape is not None and found != shape):
        wanted = f"of shape {shape}" if shape is not None else f"that holds {segment.hf_box}"
        raise CheckpointError(f"{file}: tensor {segment.hf_name} has shape {found}, the model needs one {wanted}")
    local = tensors[segment.local_name].detach()
    if any(a < b for a, b in zip(local.shape, segment.local_box.stop)) or local.dim() != len(stop):
        place = f"{segment.local_name}{segment.local_box}"
        raise CheckpointError(f"{segment.hf_name}: belongs at {place}, that tensor has shape {tuple(local.shape)}")
    local[segment.local_box.index].copy_(piece[segment.hf_box.index])


class SafetensorsWriter:
    """One safetensors file whose tensors are put one by one, in any order; a context manager.

    `shapes` are the tensors to come. Leaving the block checks that all came, and syncs the file to the disk.
    Raises CheckpointError.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Shape], dtype: torch.dtype):
        if dtype not in _DTYPE_NAMES:
            raise CheckpointError(f"{path}: dtype {dtype} is not written; use float32, bfloat16, float16 or float64")
        self._path, self._shapes, self._dtype = path, dict(shapes), dtype
        self._offsets: dict[str, int] = {}
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, shape in self._shapes.items():
            stop = at + prod(shape) * dtype.itemsize
            header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [at, stop]}
            self._offsets[name], at = at, stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes, as the library writes them
        self._base = 8 + len(text)
        self._missing = set(self._shapes)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write `tensor`, converted to the file's dtype, where the header says."""
        if name not in self._missing:
            why = "came twice" if name in self._shapes else "was not announced"
            raise CheckpointError(f"{self._path}: tensor {name} {why}")
        if tuple(tensor.shape) != self._shapes[name]:
            raise CheckpointError(
                f"{self._path}: tensor {name} has shape {tuple(tensor.shape)}, announced was {self._shapes[name]}"
            )
        self._file.seek(self._base + self._offsets[name])
        self._file.write(raw_bytes(tensor, self._dtype))
        self._missing.discard(name)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()

    def _finish(self) -> None:
        if self._missing:
            count = len(self._missing)
            raise CheckpointError(f"{self._path}: {count} tensors did not come, the first is {min(self._missing)}")
        self._file.flush()
        os.fsync(self._file.fileno())


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


def write_hf_folder(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    shapes: Mapping[str, Shape],
    dtype: torch.dtype,
    *,
    copy_from: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a Hugging Face folder from (name, whole tensor) pairs in any order; one tensor is in memory at a time.

    `copy_from` is the folder whose config and tokenizer files go along. The folder appears whole or not at all:
    it is written beside and renamed. Raises CheckpointError, also when `folder` holds something already.
    """
    files = shard_files(shapes, dtype.itemsize, max_shard_bytes)
    partial = begin_folder(folder)
    write_files(partial, files, tensors, dtype)
    finish_folder(folder, files, dtype, copy_from)


def partial_folder(folder: Path) -> Path:
    """Where a folder is written before it gets its name."""
    return folder.parent / f".{folder.name}.partial"


def begin_folder(folder: Path) -> Path:
    """Make the empty partial folder; what a broken-off attempt left there is removed."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not empty; give another folder")
    partial = partial_folder(folder)
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"{partial}: cannot be made: {_first_line(error)}") from None
    return partial


def write_files(
    partial: Path,
    files: Mapping[str, Mapping[str, Shape]],
    tensors: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
) -> None:
    """Stream `tensors` into these safetensors files. Raises CheckpointError."""
    file_of = {name: file for file, shapes in files.items() for name in shapes}
    open_files: dict[str, SafetensorsWriter] = {}
    left = {file: len(shapes) for file, shapes in files.items()}
    try:
        for name, tensor in tensors:
            if name not in file_of:
                raise CheckpointError(f"{partial}: tensor {name} was not announced")
            file = file_of[name]
            if file not in open_files:
                open_files[file] = SafetensorsWriter(partial / file, files[file], dtype)
            open_files[file].put(name, tensor)
            left[file] -= 1
        missing = [file for file, count in left.items() if count and file not in open_files]
        if missing:
            raise CheckpointError(f"{partial / missing[0]}: none of its tensors came")
        _close(open_files.values(), broken=None)
    except OSError as error:
        _close(open_files.values(), broken=error)
        raise CheckpointError(f"{partial}: cannot be written: {_first_line(error)}") from None
    except BaseException as error:
        _close(open_files.values(), broken=error)
        raise


def _close(writers: Iterable[SafetensorsWriter], broken: BaseException | None) -> None:
    for writer in writers:
        writer.__exit__(type(broken) if broken else None, broken, None)


def finish_folder(
    folder: Path, files: Mapping[str, Mapping[str, Shape]], dtype: torch.dtype, copy_from: Path | None
) -> None:
    """Add the index and the companion files to the partial folder, sync it and give it its name."""
    partial = partial_folder(folder)
    try:
        if copy_from is not None:
            _copy_companions(copy_from, partial, dtype)
        if len(files) > 1:
            _write_index(partial / INDEX_FILE, files, dtype)
        _sync_folder(partial)
        partial.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {_first_line(error)}") from None


def _copy_companions(source: Path, target: Path, dtype: torch.dtype) -> None:
    for pattern in _COMPANIONS:
        for file in sorted(source.glob(pattern)):
            if file.name == INDEX_FILE:
                continue
            if file.name == "config.json":
                _write_config(file, target / file.name, dtype)
            else:
                shutil.copyfile(file, target / file.name)
            _sync_file(target / file.name)


def _write_config(source: Path, target: Path, dtype: torch.dtype) -> None:
    """The model's config, naming the dtype that is written; transformers before 5 called the field torch_dtype."""
    try:
        config = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{source}: is not JSON: {_first_line(error)}") from None
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    target.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_index(path: Path, files: Mapping[str, Mapping[str, Shape]], dtype: torch.dtype) -> None:
    total = sum(prod(shape) for shapes in files.values() for shape in shapes.values()) * dtype.itemsize
    weight_map = {name: file for file, shapes in files.items() for name in shapes}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _sync_file(path)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
