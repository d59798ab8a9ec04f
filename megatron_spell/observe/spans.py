"""Where the time goes: named, nested spans, as seconds for the metrics and as a trace for chrome://tracing or Perfetto.

    with span("collect", step=3):
        ...
    metrics |= spans.seconds()      # {"time/collect": 12.3, ...}, then from zero
    spans.write_trace(path)

Spans may be opened in any thread and any asyncio task. The trace draws spans that nest in one lane; a span that begins
in another thread or task than its parent gets a lane of its own, as it may overlap with its siblings.
"""

import asyncio
import itertools
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from megatron_spell.observe.files import json_line, write_whole

MAX_EVENTS = 20_000  # kept for the trace; the oldest go first, and the trace says how many

_Lane = tuple[object, int]  # who opened it (thread and task), its number


class Spans:
    """A recorder. One is made with the module; others are for those who want their own."""

    def __init__(self, max_events: int = MAX_EVENTS) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=max_events)
        self._dropped = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._lanes_in_use: set[int] = set()
        self._lane: ContextVar[_Lane | None] = ContextVar("lane", default=None)
        self._origin = time.perf_counter()

    @contextmanager
    def span(self, name: str, **args: object) -> Iterator[None]:
        """Record the time until the block is left, by whatever way; an exception's type is added to `args`."""
        who, outer = _who(), self._lane.get()
        nested = outer is not None and outer[0] == who
        lane = outer[1] if outer is not None and nested else self._lease()
        token = self._lane.set((who, lane))
        start = time.perf_counter()
        try:
            yield
        except BaseException as error:
            args = {**args, "error": type(error).__name__}
            raise
        finally:
            self._record(name, lane, start, time.perf_counter(), args)
            self._lane.reset(token)
            if not nested:
                self._release(lane)

    def seconds(self, *, reset: bool = True) -> dict[str, float]:
        """`time/<name>` -> seconds spent in spans of that name since the last reset, added up over overlapping ones."""
        with self._lock:
            totals = {f"time/{name}": total for name, total in self._seconds.items()}
            if reset:
                self._seconds.clear()
        return totals

    def write_trace(self, path: Path) -> None:
        """All recorded spans in Chrome's trace-event format (complete events, microseconds), whole or not at all."""
        with self._lock:
            record = {"traceEvents": list(self._events), "displayTimeUnit": "ms", "dropped_events": self._dropped}
        write_whole(path, [json_line(record)])

    def _lease(self) -> int:
        with self._lock:
            lane = next(number for number in itertools.count() if number not in self._lanes_in_use)
            self._lanes_in_use.add(lane)
        return lane

    def _release(self, lane: int) -> None:
        with self._lock:
            self._lanes_in_use.discard(lane)

    def _record(self, name: str, lane: int, start: float, stop: float, args: dict[str, object]) -> None:
        event = {
            "name": name,
            "ph": "X",
            "ts": (start - self._origin) * 1e6,
            "dur": (stop - start) * 1e6,
            "pid": os.getpid(),
            "tid": lane,
            "args": {key: value if isinstance(value, (int, float)) else str(value) for key, value in args.items()},
        }
        with self._lock:
            self._dropped += len(self._events) == self._events.maxlen
            self._events.append(event)
            self._seconds[name] += stop - start


def _who() -> object:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), id(task)


_RUN = Spans()
span = _RUN.span
seconds = _RUN.seconds
write_trace = _RUN.write_trace
