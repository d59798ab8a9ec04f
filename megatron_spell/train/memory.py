"""Memory of a whole run on this machine: this process's launcher and everything it started."""

import contextlib
import threading

import psutil


class MemoryWatch:
    """Samples the resident memory of a process and its descendants in the background.

    Shared pages count once for each process (resident set sizes are summed), so the figure is an upper bound.
    """

    def __init__(self, root: psutil.Process, every_s: float = 2.0):
        self._root, self._every_s = root, every_s
        self._closed = threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    @property
    def peak_gib(self) -> float:
        return self._peak / 2**30

    def close(self) -> None:
        self._closed.set()
        self._thread.join(self._every_s + 5)

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, resident_bytes(self._root))
            if self._closed.wait(self._every_s):
                return


def resident_bytes(root: psutil.Process) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total
