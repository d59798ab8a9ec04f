"""Lines that are only ever added to, and that a killed process leaves usable."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from megatron_spell.observe.files import encode_line

SYNC_LINES, SYNC_S = 64, 5.0  # what a machine that loses its power may take with it, at most


class JournalBusy(ValueError):
    """Another process adds to the file."""


class Journal:
    """A file of lines, open for adding. A line that was begun and not ended is cut off when it is opened.

    Every line reaches the operating system at once, so a killed process loses none; the disk gets them in batches.
    Raises JournalBusy where another process has the file open, on file systems that can tell.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise JournalBusy(f"{path}: is being written by another process; wait for it, or end it") from None
        except OSError:
            pass  # a file system without locks
        _cut_half_line(path, self._file)
        self._num_waiting, self._synced = 0, time.monotonic()

    def append(self, line: str) -> None:
        self._file.write(encode_line(line))
        self._file.flush()
        self._num_waiting += 1
        if self._num_waiting >= SYNC_LINES or time.monotonic() - self._synced >= SYNC_S:
            self._sync()

    def close(self) -> None:
        if not self._file.closed:
            self._sync()
            self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._num_waiting, self._synced = 0, time.monotonic()


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and content of every line that was ended; nothing where there is no file."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line[:-1]


def _cut_half_line(path: Path, file: BinaryIO) -> None:
    size = path.stat().st_size
    with path.open("rb") as reading:
        end = size
        while end > 0:
            begin = max(0, end - 2**20)
            reading.seek(begin)
            found = reading.read(end - begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
    if end < size:
        os.ftruncate(file.fileno(), end)
