"""Writes Hugging Face folders: weight files, their index, config and tokenizer. One that has its name is complete."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path

import torch

from megatron_spell.bridge.boxes import Box
from megatron_spell.bridge.hf_files import (
    DEFAULT_SHARD_BYTES,
    INDEX_FILE,
    FolderError,
    Shape,
    first_line,
    shard_files,
)
from megatron_spell.bridge.safetensors_writer import COPY_BYTES, SafetensorsWriter

# what stands beside the weights in a folder and belongs to the model
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model")

Boxes = Iterable[tuple[str, Box, torch.Tensor]]
"""(tensor's name, a box of it, the values there), in any order; together every element once."""


def write_hf_folder(
    folder: Path,
    boxes: Boxes,
    shapes: Mapping[str, Shape],
    dtype: torch.dtype,
    *,
    copy_from: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a Hugging Face folder from boxes in any order; beside the box in hand next to nothing is in memory.

    `copy_from` is the folder whose config and tokenizer files go along. The folder appears whole or not at all:
    it is written beside and renamed. Raises FolderError, also when `folder` holds something already.
    """
    files = shard_files(shapes, dtype.itemsize, max_shard_bytes)
    partial = begin_folder(folder)
    write_files(partial, files, boxes, dtype)
    finish_folder(folder, files, dtype, copy_from)


def partial_folder(folder: Path) -> Path:
    """Where a folder is written before it gets its name."""
    return folder.parent / f".{folder.name}.partial"


def begin_folder(folder: Path) -> Path:
    """Make the empty partial folder; what a broken-off attempt left there is removed."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderError(f"{folder}: exists and is not empty; give another folder")
    partial = partial_folder(folder)
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise FolderError(f"{partial}: cannot be made: {first_line(error)}") from None
    return partial


def write_files(
    partial: Path,
    files: Mapping[str, Mapping[str, Shape]],
    boxes: Boxes,
    dtype: torch.dtype,
    *,
    max_copy_bytes: int = COPY_BYTES,
) -> None:
    """Stream `boxes` into these safetensors files. Raises FolderError."""
    file_of = {name: file for file, shapes in files.items() for name in shapes}
    with ExitStack() as stack:
        writers = {
            file: stack.enter_context(SafetensorsWriter(partial / file, shapes, dtype, max_copy_bytes=max_copy_bytes))
            for file, shapes in files.items()
        }
        for name, box, values in boxes:
            if name not in file_of:
                raise FolderError(f"{partial}: tensor {name} was not announced")
            writers[file_of[name]].put_box(name, box, values)


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
        raise FolderError(f"{folder}: cannot be written: {first_line(error)}") from None


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
        raise FolderError(f"{source}: is not JSON: {first_line(error)}") from None
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
