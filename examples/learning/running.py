"""Runs as processes of their own, a few side by side, and what became of each."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from collecting import ATTEMPTS
from plan import PlannedRun

POLL_S = 0.5
GRACE_S = 30.0  # what a run gets to end its ranks and engines after SIGTERM
# Ray's workers, the engines among them, have niceness 15 by default and would wait for the other run's trainer.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
TRAIN = (sys.executable, "-m", "megatron_spell.cli.main")


@dataclass(frozen=True, slots=True)
class Ended:
    """`fault` is None when the run has all that it was to make."""

    run: PlannedRun
    fault: str | None
    skipped: bool = False


@dataclass(slots=True)
class Runner:
    """Runs what is not finished, `parallel` at a time, each on a core of its own where `pin` says so.

    `tell` gets "began" and "ended" of every run, from other threads. A run that fails or exceeds `limit_s` is told of
    and the others go on.
    """

    parallel: int
    limit_s: float
    tell: Callable[[PlannedRun, Ended | None], None]
    pin: bool = True
    command: Sequence[str] = TRAIN
    _stop: threading.Event = field(default_factory=threading.Event)

    def all(self, runs: Sequence[PlannedRun]) -> list[Ended]:
        """In the order given. On Ctrl-C the runs under way are ended before KeyboardInterrupt goes on."""
        slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.parallel):
            slots.put(slot)
        with ThreadPoolExecutor(self.parallel) as pool:
            waiting: list[Future[Ended]] = [pool.submit(self._one, run, slots) for run in runs]
            try:
                return [future.result() for future in waiting]
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, run: PlannedRun, slots: "queue.SimpleQueue[int]") -> Ended:
        if run.finished:
            ended = Ended(run, None, skipped=True)
        else:
            slot = slots.get()
            try:
                self.tell(run, None)
                ended = Ended(run, self._play(run, slot))
            finally:
                slots.put(slot)
        self.tell(run, ended)
        return ended

    def _play(self, run: PlannedRun, slot: int) -> str | None:
        """The fault, or None."""
        run.claim()
        log = run.folder / "console.log"
        began = time.time()
        _note(run.folder, began, None)
        with log.open("ab") as output:
            process = self._start(run, slot, output)
            fault = self._wait(process)
        _note(run.folder, began, time.time() - began)
        if fault is None and process.returncode:
            fault = f"exit code {process.returncode}: {last_line(log)}"
        return fault or (None if run.finished else f"{log}: ended without a summary")

    def _start(self, run: PlannedRun, slot: int, output) -> subprocess.Popen:
        if self.pin:  # of this thread; the process and its children inherit it
            cores = sorted(os.sched_getaffinity(os.getpid()))
            os.sched_setaffinity(0, {cores[slot % len(cores)]})
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [*self.command, *run.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
            start_new_session=True,  # a Ctrl-C on the terminal is told once, by this program
        )

    def _wait(self, process: subprocess.Popen) -> str | None:
        limit = time.monotonic() + self.limit_s
        while process.poll() is None:
            if self._stop.is_set() or time.monotonic() > limit:
                _end(process)
                return "interrupted" if self._stop.is_set() else f"took more than {self.limit_s / 60:g} minutes"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
        return None


def _end(process: subprocess.Popen) -> None:
    process.terminate()  # `megatron-spell train` ends its ranks and engines itself, even when it is killed
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _note(folder: Path, began: float, seconds: float | None) -> None:
    """An attempt, replaced by the same one with its end: one that was killed stays without."""
    path = folder / ATTEMPTS
    attempts = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    attempts = [attempt for attempt in attempts if attempt["began"] != began]
    attempts.append({"began": began, "seconds": seconds})
    path.write_text("".join(json.dumps(attempt) + "\n" for attempt in attempts), encoding="utf-8")


def last_line(log: Path) -> str:
    """The last that a run said, for a reader of one line."""
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return said[-1] if said else f"{log} is empty"
