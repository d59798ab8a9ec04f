"""Whole checkpoints or none: written aside, described by a manifest of checksums, and moved into place at once."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint is missing, torn or of another run; the message names it and the way out."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The folder `checkpoints/` of a run; one `step_NNNNNN/` for each kept step."""

    folder: Path
    keep: int

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into; what an interrupted save left is removed."""
        aside = self.folder / f".step_{step:06d}.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        return aside

    def commit(self, step: int) -> Path:
        """Make what was written since `begin(step)` the newest checkpoint, and drop the oldest beyond `keep`."""
        aside, final = self.folder / f".step_{step:06d}.tmp", self.folder / f"step_{step:06d}"
        _write_manifest(aside)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _sync(self.folder)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step_{old:06d}", ignore_errors=True)
        return final

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, oldest first, whole or not."""
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_[0-9]*") if path.is_dir())

    def latest(self) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, and a line for each newer one that is not whole."""
        torn = []
        for step in reversed(self.steps()):
            path = self.folder / f"step_{step:06d}"
            fault = find_fault(path)
            if fault is None:
                return path, torn
            torn.append(f"{path}: {fault}; it is left out")
        return None, torn


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None when every file is as its manifest says."""
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, digest in listed.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} differs from its checksum"
    return None


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    listed = {str(path.relative_to(folder)): _digest(path) for path in files}
    for path in files:
        _sync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": listed}, indent=1), encoding="utf-8")
    _sync(manifest)
    _sync(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
