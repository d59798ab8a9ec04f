"""The weights of a checkpoint, or any model folder, as a new Hugging Face folder of another dtype or other files.

Nothing of Megatron is needed, since a checkpoint holds Hugging Face tensors already (docs/decisions/002). They are read
from the mapped files and written piece by piece.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from megatron_spell.bridge.boxes import Box
from megatron_spell.bridge.hf_files import INDEX_FILE, SINGLE_FILE, shard_files
from megatron_spell.bridge.hf_folders import partial_folder, write_hf_folder
from megatron_spell.bridge.hf_tensors import StoredTensor, read_boxes, stored_tensors
from megatron_spell.train.checkpoints import MANIFEST, Checkpoints, all_but_tensors, find_fault
from megatron_spell.train.run_folder import RunFolder

WEIGHTS, MAIN_WEIGHTS = "policy/weights", "policy/main_weights"  # of a checkpoint, see policy/checkpoint.py


class ConvertError(ValueError):
    """What was named cannot be converted; one line with the way out."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model folder; `main_weights` holds its float32 weights where a checkpoint has those besides.

    `notes` are lines about newer checkpoints that were left out.
    """

    weights: Path
    main_weights: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is going to be written: tensors by name, read from where they lie, and the dtype they get."""

    tensors: Mapping[str, StoredTensor]
    dtype: torch.dtype
    companions: Path

    @property
    def dtype_name(self) -> str:
        return _name(self.dtype)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_elements for tensor in self.tensors.values()) * self.dtype.itemsize


def find_source(path: Path, step: int | None = None) -> Source:
    """What `path` names: a run folder (its newest whole checkpoint, or that of `step`), a checkpoint, a model folder.

    The checksums of a checkpoint's weights are compared; those of its moments are not, which nothing is taken from.
    Raises ConvertError.
    """
    checkpoints = Checkpoints(RunFolder(path).checkpoints, keep=1)
    if checkpoints.folder.is_dir():
        return _in_run(checkpoints, step)
    if step is not None:
        raise ConvertError(f"--step = {step}: {path} is no run folder; leave it out or name the run's folder")
    if (path / MANIFEST).is_file():
        return _of_checkpoint(path)
    if (path / SINGLE_FILE).is_file() or (path / INDEX_FILE).is_file():
        return Source(path)
    raise ConvertError(
        f"{path}: is neither a run folder, nor a checkpoint (RUN/checkpoints/step_NNNNNN), nor a model folder with"
        f" {SINGLE_FILE} or {INDEX_FILE}"
    )


def choose(source: Source, dtype: Literal["float32", "bfloat16"] | None) -> Conversion:
    """What to write as `dtype`, or as the weights are when it is None; main weights serve every dtype but that.

    Raises ConvertError, BridgeError.
    """
    tensors = stored_tensors(source.weights)
    found = {tensor.dtype for tensor in tensors.values()}
    if dtype is None and len(found) != 1:
        names = ", ".join(sorted(map(_name, found))) or "no"
        raise ConvertError(f"{source.weights}: holds {names} tensors; say which --dtype to write")
    wanted = getattr(torch, dtype) if dtype else next(iter(found))
    if source.main_weights is not None and found != {wanted}:
        tensors = stored_tensors(source.main_weights)
    return Conversion(tensors, wanted, source.weights)


def convert(
    conversion: Conversion, out: Path, *, max_shard_bytes: int, written: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Write the new folder `out`, whole or not at all; the names of its weight files.

    `written` hears the bytes of every piece. Raises ConvertError, BridgeError.
    """
    if out.exists() or out.is_symlink():
        raise ConvertError(f"--out = {out}: exists; give a folder that does not")
    _check_room(conversion, out)
    shapes = {name: tensor.shape for name, tensor in conversion.tensors.items()}
    try:
        write_hf_folder(
            out,
            _told(conversion, written),
            shapes,
            conversion.dtype,
            copy_from=conversion.companions,
            max_shard_bytes=max_shard_bytes,
        )
    except BaseException:
        shutil.rmtree(partial_folder(out), ignore_errors=True)
        raise
    return list(shard_files(shapes, conversion.dtype.itemsize, max_shard_bytes))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _in_run(checkpoints: Checkpoints, step: int | None) -> Source:
    steps = checkpoints.steps()
    if step is not None and step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise ConvertError(f"--step = {step}: {checkpoints.folder} holds no checkpoint of it; there are {there}")
    if step is not None:
        return _of_checkpoint(checkpoints.of_step(step))
    newest, torn = checkpoints.latest(hashed=_is_read)
    if newest is None:
        raise ConvertError(f"{checkpoints.folder}: holds no whole checkpoint{f' ({torn[0]})' if torn else ''}")
    return _parts_of(newest, tuple(torn))


def _of_checkpoint(checkpoint: Path) -> Source:
    fault = find_fault(checkpoint, hashed=_is_read)
    if fault is not None:
        raise ConvertError(f"{checkpoint}: {fault}; name another checkpoint")
    return _parts_of(checkpoint)


def _parts_of(checkpoint: Path, notes: tuple[str, ...] = ()) -> Source:
    main_weights = checkpoint / MAIN_WEIGHTS
    return Source(checkpoint / WEIGHTS, main_weights if main_weights.is_dir() else None, notes)


def _is_read(name: str) -> bool:
    return all_but_tensors(name) or name.startswith((f"{WEIGHTS}/", f"{MAIN_WEIGHTS}/"))


def _check_room(conversion: Conversion, out: Path) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if conversion.num_bytes > free:
        raise ConvertError(
            f"--out = {out}: {conversion.num_bytes / 1e9:.1f} GB are to be written and {parent} has {free / 1e9:.1f} GB"
            " free; give another folder"
        )


def _told(conversion: Conversion, written: Callable[[int], None]) -> Iterator[tuple[str, Box, torch.Tensor]]:
    for name, box, values in read_boxes(conversion.tensors):
        yield name, box, values
        written(box.num_elements * conversion.dtype.itemsize)
