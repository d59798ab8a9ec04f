"""Progress of a build on a terminal, nothing elsewhere."""

from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class BuildProgress:
    """A bar for every step. A context manager."""

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

    def step(self, name: str, total: int) -> Callable[[int], None]:
        """What is told how many of `total` are done."""
        task = self._bars.add_task(name, total=total)
        return lambda done: self._bars.update(task, completed=done)

    def counted(self, name: str, things: Iterable, total: int | None = None) -> Iterator:
        """`things`, each counted as it is taken."""
        return iter(self._bars.track(things, total=total, description=name))

    def __enter__(self) -> "BuildProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
