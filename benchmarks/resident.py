"""Peak memory of a stretch of a program: resident bytes on Linux, on a GPU what its allocator gave out."""

import ctypes
import gc
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


def _of_process(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))
