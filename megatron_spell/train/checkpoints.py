"""Whole checkpoints or none: written aside, described by a manifest of checksums, and moved into place at once."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MANIFEST = "manifest.json"
FORMAT = "megatron_spell.checkpoint/1"
HASHING_THREADS = min(4, os.cpu_count() or 1)  # hashlib lets go of the interpreter; training goes on meanwhile


class CheckpointError(ValueError):
    """A checkpoint is missing, torn or of another run; the message names it and the way out."""


def every_file(_: str) -> bool:
    return True


def all_but_tensors(name: str) -> bool:
    """The small files: enough to see whether a run can go on, for those who do not read the tensors."""
    return not name.endswith(".safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The folder `checkpoints/` of a run; one `step_NNNNNN/` for each kept step."""

    folder: Path
    keep: int

    def aside(self, step: int) -> Path:
        """Where the checkpoint of `step` is written before it is whole."""
        return self.folder / f".step_{step:06d}.tmp"

    def of_step(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into; what interrupted saves left is removed."""
        for left in self.folder.glob(".step_*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        self.aside(step).mkdir(parents=True)
        return self.aside(step)

    def commit(self, step: int) -> Path:
        """Make what was written since `begin(step)` the newest checkpoint, and drop the oldest beyond `keep`.

        Raises CheckpointError when the disk does not take it.
        """
        aside, final = self.aside(step), self.of_step(step)
        try:
            _write_manifest(aside)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            _sync(self.folder)
        except OSError as error:
            raise CheckpointError(f"{final}: cannot be written: {error}") from None
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.of_step(old), ignore_errors=True)
        return final

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, oldest first, whole or not."""
        names = (path.name.removeprefix("step_") for path in self.folder.glob("step_[0-9]*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self, hashed: Callable[[str], bool] = every_file) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, and a line for each newer one that is not whole (see find_fault)."""
        torn = []
        for step in reversed(self.steps()):
            path = self.of_step(step)
            fault = find_fault(path, hashed)
            if fault is None:
                return path, torn
            torn.append(f"{path}: {fault}; it is left out")
        return None, torn


def none_is_whole(checkpoints: Checkpoints, torn: list[str]) -> str:
    """What to tell who would go on from checkpoints of which none can be used."""
    return (
        f"{checkpoints.folder}: none of its {len(torn)} checkpoints is whole ({torn[0]}); put a whole one back, or"
        " begin anew in another run_folder"
    )


def find_fault(checkpoint: Path, hashed: Callable[[str], bool] = every_file) -> str | None:
    """What is wrong with a checkpoint folder, or None when every file is as its manifest says.

    Size and presence are compared for all files, checksums for those that `hashed` says, several at a time and without
    holding a file in memory.
    """
    try:
        record = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        listed = {name: (entry["bytes"], entry["blake2b"]) for name, entry in record["files"].items()}
        if record["format"] != FORMAT or not listed:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is missing, unreadable or not of the format {FORMAT}"
    for name, (num_bytes, _) in listed.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"{MANIFEST} names {name}, which is outside of the checkpoint"
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != num_bytes:
            return f"{name} has {path.stat().st_size} bytes, not {num_bytes}"
    return _find_changed(checkpoint, {name: digest for name, (_, digest) in listed.items() if hashed(name)})


def _find_changed(checkpoint: Path, digests: dict[str, str]) -> str | None:
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        try:
            found = threads.map(_digest, [checkpoint / name for name in digests])
            changed = [name for name, digest in zip(digests, found) if digest != digests[name]]
        except OSError as error:
            return f"cannot be read: {error}"
    return f"{changed[0]} differs from its checksum" if changed else None


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        digests = list(threads.map(_digest, files))
        list(threads.map(_sync, files))
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "blake2b": digest}
        for path, digest in zip(files, digests)
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "files": listed}, indent=1), encoding="utf-8")
    _sync(manifest)
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync(path)


def _digest(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
