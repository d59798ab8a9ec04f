"""What the actors of test_ray_cluster.py hold."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import numpy as np


class OddError(ValueError):
    """An error class of our own."""


@dataclass(frozen=True)
class Record:
    values_T: np.ndarray
    label: str


class Held:
    def __init__(self, base: int) -> None:
        self.base = base
        self.cancelled = 0
        print("held object built", flush=True)

    async def add(self, number: int, *, twice: bool = False) -> int:
        await asyncio.sleep(0.01)
        return self.base + number * (2 if twice else 1)

    def double(self, record: Record) -> Record:
        return Record(record.values_T * 2, record.label)

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def pids(self) -> list[int]:
        """Its own and that of a child it starts, which ignores its parent's end and stands in a session of its own."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
        return [os.getpid(), child.pid]

    def fail(self) -> None:
        raise OddError("one line")

    async def hang(self) -> None:
        try:
            await asyncio.sleep(120)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def num_cancelled(self) -> int:
        return self.cancelled

    def die(self) -> None:
        print("these are the last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        print("closed in peace", flush=True)
