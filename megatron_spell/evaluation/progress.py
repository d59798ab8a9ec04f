"""A live line while an evaluation runs; silent where nobody watches."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_spell.evaluation.running import Tally


class EvaluationProgress:
    """A context manager showing samples against all, and what stands in the way of the rest."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("evaluate"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[others]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("samples", total=None, others="")

    def show(self, tally: Tally, num_retries: int = 0) -> None:
        counts = {"truncated": tally.truncated, "retries": num_retries, "given up": len(tally.failures)}
        others = "  ".join(f"{count} {what}" for what, count in counts.items() if count)
        self._progress.update(self._task, total=tally.total, completed=tally.kept + tally.scored, others=others)

    def __enter__(self) -> "EvaluationProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
