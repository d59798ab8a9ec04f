"""Progress of the steps on a terminal, nothing elsewhere."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StepBars:
    """A bar a step. A context manager; called with a step's name and size, it gives what is told how far it is."""

    def __init__(self, console: Console | None = None) -> None:
        shown_on = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=shown_on,
            transient=True,
            disable=not shown_on.is_terminal,
        )

    def __call__(self, step: str, total: int) -> Callable[[int], None]:
        task = self._bars.add_task(step, total=total)
        return lambda done: self._bars.update(task, completed=done)

    def __enter__(self) -> "StepBars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
