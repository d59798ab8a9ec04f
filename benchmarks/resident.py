"""Peak memory of a stretch of a program: resident bytes on Linux, on a GPU what its allocator gave out."""

import ctypes
import gc
import threading
from pathlib import Path

import torch

ON_GPU = torch.cuda.is_available()


def start_peak() -> int:
    """Give freed memory back and forget the peak so far; the bytes held now."""
    gc.collect()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    return _of_process("VmRSS")


def peak() -> int:
    """The most bytes held since `start_peak`."""
    return torch.cuda.max_memory_allocated() if ON_GPU else _of_process("VmHWM")


class AnonPeak:
    """Peak of the memory of its own that a block takes: no mapped files, no page cache. Linux only.

    The kernel keeps no high-water mark of it, so a thread looks every millisecond and may miss what is shorter-lived.
    """

    def __enter__(self) -> "AnonPeak":
        start_peak()
        self._before, self._most, self._done = _of_process("RssAnon"), 0, threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.001):
            self._most = max(self._most, _of_process("RssAnon"))

    def __exit__(self, *_) -> None:
        self._done.set()
        self._watch.join()

    @property
    def num_bytes(self) -> int:
        """Above what was held at the beginning."""
        return max(0, self._most - self._before)


def _of_process(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))
