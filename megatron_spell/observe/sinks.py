"""Where a step's metrics go: the console, a JSONL file, TensorBoard."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_spell.observe.errors import ObserveError
from megatron_spell.observe.files import encode_line, json_line, write_whole

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"

# What the console's one line shows, where present: metric -> (label, format).
CONSOLE_COLUMNS = {
    "rounds/outcome/usable": ("usable", "{:.0f}"),
    "rounds/count": ("rounds", "{:.0f}"),
    "responder/solve_rate/mean": ("solved", "{:.3f}"),
    "questioner/reward/mean": ("asked", "{:+.3f}"),
    "verifier/agreement/mean": ("agree", "{:.3f}"),
    "policy/loss": ("loss", "{:+.4f}"),
    "policy/grad_norm": ("grad", "{:.3f}"),
    "curriculum/document_tokens": ("length", "{:.0f}"),
    "time/step": ("time", "{:.1f}s"),
}


class Sink(Protocol):
    """Takes each step once, in rising order."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Sinks:
    """Several sinks as one; also a context manager that closes them."""

    def __init__(self, sinks: Sequence[Sink], next_step: int = 0) -> None:
        self._sinks = tuple(sinks)
        self._next_step = next_step

    @classmethod
    def open(cls, names: Sequence[str], folder: Path, next_step: int = 0) -> "Sinks":
        """The sinks called `names` ("console", "jsonl", "tensorboard"), with their files in `folder`.

        `next_step` is the first step that will be written. What the files already hold of it and later steps, written
        by a run that then fell back to a checkpoint, is taken out, so that no step is ever there twice.

        Raises:
            ObserveError: a name is unknown, or `metrics.jsonl` is not a file of this kind.
        """
        makers = {"console": ConsoleSink, "jsonl": JsonlSink, "tensorboard": TensorBoardSink}
        for name in names:
            if name not in makers:
                raise ObserveError(f"observe.sinks: {name!r} is not a sink; use {', '.join(makers)}")
        folder.mkdir(parents=True, exist_ok=True)
        return cls([makers[name](folder, next_step) for name in names], next_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises ObserveError when `step` was already written, or lies before the first one."""
        if step < self._next_step:
            raise ObserveError(f"step {step}: its metrics are already written; the next step is {self._next_step}")
        self._next_step = step + 1
        for sink in self._sinks:
            sink.write(step, metrics)

    def write_aside(self, step: int, metrics: Mapping[str, float]) -> None:
        """Figures of the weights after `step` that are kept elsewhere (evaluations.jsonl): TensorBoard alone has them.

        `step` may have been written, and may come before the first one.
        """
        for sink in self._sinks:
            if isinstance(sink, TensorBoardSink):
                sink.write(step, metrics)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ConsoleSink:
    """One line a step, with the few figures one watches."""

    def __init__(self, folder: Path, next_step: int, console: object = None) -> None:
        from rich.console import Console

        self._console = console if isinstance(console, Console) else Console(highlight=False, soft_wrap=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = [
            f"[dim]{label}[/] {form.format(metrics[name])}"
            for name, (label, form) in CONSOLE_COLUMNS.items()
            if name in metrics
        ]
        self._console.print(f"[bold]step {step}[/]  " + "  ".join(shown))

    def close(self) -> None:
        """Nothing is held."""


class JsonlSink:
    """`metrics.jsonl`: one object a step, its number under "step"; a metric that is NaN or infinite is null.

    A line is on disk before `write` returns.
    """

    def __init__(self, folder: Path, next_step: int) -> None:
        path = folder / METRICS_FILE
        if path.exists():
            write_whole(path, _lines_before(path, next_step))
        self._file = path.open("ab")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(encode_line(json_line({"step": step, **metrics})))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _lines_before(path: Path, next_step: int) -> list[str]:
    """The whole lines of earlier steps; a last line that was cut off by a crash goes too."""
    lines = path.read_text("utf-8", errors="replace").split("\n")
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError):
            if number >= len(lines):
                break
            raise ObserveError(f"{path}: line {number} is not a step's metrics; move the file away") from None
        if step < next_step:
            kept.append(line)
    return kept


class TensorBoardSink:
    """Scalars for TensorBoard, written by its own event writer: neither TensorFlow nor torch is loaded.

    A metric that is NaN or infinite is left out.
    """

    def __init__(self, folder: Path, next_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # generated: pyright cannot see their classes
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event: Any = vars(event_pb2)["Event"]
        self._summary: Any = vars(summary_pb2)["Summary"]
        self._writer = EventFileWriter(str(folder / EVENTS_FOLDER))
        # Makes TensorBoard forget what earlier files in the folder say of this step and later ones.
        session_log = vars(event_pb2)["SessionLog"]
        start = session_log(status=session_log.START)
        self._writer.add_event(self._event(wall_time=time.time(), step=next_step, session_log=start))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in metrics.items()
            if value is not None and math.isfinite(value)
        ]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
