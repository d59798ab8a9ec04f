"""The work folder of a build: files that are whole or absent, named by a fingerprint of what they were made from."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from megatron_spell import __version__
from megatron_spell.data.errors import BuildError

WORK_VERSION = 1  # of the files' layout and of every step's rules; raise it when either changes


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that depend on every part, on the rules' version and on nothing else."""
    text = json.dumps([WORK_VERSION, __version__, *parts], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


class WorkFolder:
    """One build at a time works in it. A context manager that holds its lock; what is left there is gone on from."""

    def __init__(self, path: Path) -> None:
        """Raises BuildError when there is no place to write to, or another build is at work there."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise BuildError(
                f"work folder {path}: another build is at work there; wait, or give another --work"
            ) from None
        except OSError as error:
            raise BuildError(f"work folder {path}: cannot be written: {error.strerror}; give another --work") from None

    def __enter__(self) -> "WorkFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
        if [one.name for one in self.path.glob("*")] == ["lock"]:
            self.remove()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """`write` into a draft that takes the place of `path` when it has reached the disk. Raises BuildError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise BuildError(f"{path}: cannot be written: {error.strerror}; make room or give another --work") from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, lambda file: file.write(json.dumps(value, ensure_ascii=False).encode("utf-8")))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    write_whole(path, lambda file: np.savez(file, **arrays))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
