"""How far the runs are, on a terminal; plain lines where nobody watches."""

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from plan import PlannedRun
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from running import Ended

REFRESH_S = 2.0


class LearningProgress:
    """A context manager; `tell` may be called from any thread."""

    def __init__(self, runs: Sequence[PlannedRun], console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task("runs", total=len(runs), note="")
        self._under_way: dict[PlannedRun, TaskID] = {}
        self._lock = threading.Lock()

    def tell(self, run: PlannedRun, ended: Ended | None) -> None:
        """`ended` is None when the run begins."""
        with self._lock:
            if ended is None:
                total = run.config().steps
                self._under_way[run] = self._progress.add_task(run.name, total=total, note="starting")
                self._console.print(f"{run.name}: begun, {run.folder}")
                return
            if run in self._under_way:
                self._progress.remove_task(self._under_way.pop(run))
            self._progress.advance(self._all)
            what = ended.fault or ("was finished before" if ended.skipped else f"done, {note(run)}")
            self._console.print(f"{run.name}: {what}", style="red" if ended.fault else None, markup=False)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        stop = threading.Event()
        watching = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        with self._progress:
            watching.start()
            try:
                yield
            finally:
                stop.set()
                watching.join()

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(REFRESH_S):
            with self._lock:
                for run, task in self._under_way.items():
                    self._progress.update(task, completed=len(steps(run)), note=note(run))


def note(run: PlannedRun) -> str:
    """What a run has come to so far, from its files."""
    measured = [f"{e['overall']['mean']:.1%}" for e in _lines(run, "evaluations.jsonl")]
    told = [f"accuracy {' → '.join(measured)}"] if measured else []
    for step in steps(run)[-1:]:
        told.append(f"solved {step.get('responder/solve_rate/mean') or 0:.2f}")
        told.append(f"length {step.get('curriculum/document_tokens') or 0:.0f}")
    return ", ".join(told) or "starting"


def steps(run: PlannedRun) -> list[dict[str, Any]]:
    return _lines(run, "metrics.jsonl")


def _lines(run: PlannedRun, name: str) -> list[dict[str, Any]]:
    path = run.folder / name
    found = []
    with contextlib.suppress(OSError, ValueError):  # absent, or the last line is being written
        for line in path.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line))
    return found
