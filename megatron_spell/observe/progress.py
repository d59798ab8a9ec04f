"""A live line while rounds are collected; silent where nobody watches."""

from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from megatron_spell.types.play import Outcome


class CollectProgress:
    """A context manager showing usable questions against the quota, and how the other rounds ended.

    Draws on `console` (standard error by default) only when that is a terminal; writes nothing otherwise.
    """

    def __init__(self, step: int, quota: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._outcomes: Counter[Outcome] = Counter()
        self._progress = Progress(
            TextColumn("step {task.fields[step]}  collect"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[others]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("collect", total=quota, step=step, others="")

    def round_ended(self, outcome: Outcome, in_flight: int) -> None:
        """Count one more round; `in_flight` is the number of rounds still being played."""
        self._outcomes[outcome] += 1
        others = [f"{count} {name}" for name, count in self._outcomes.most_common() if name is not Outcome.USABLE]
        self._progress.update(
            self._task,
            completed=self._outcomes[Outcome.USABLE],
            others="  ".join([f"{in_flight} in flight", *others]),
        )

    def __enter__(self) -> "CollectProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
