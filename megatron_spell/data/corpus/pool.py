"""The same work on many parts, over processes; results do not depend on how many."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures import TimeoutError as Late
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for_end
from typing import TypeVar

from megatron_spell.data.errors import BuildError

Part = TypeVar("Part")
Result = TypeVar("Result")
PART_TIMEOUT_S = 3600.0  # a part is 16 MB of text; the slowest kind, PDF, takes minutes


def each_part(
    work: Callable[[Part], Result],
    parts: Sequence[Part],
    workers: int,
    name_of: Callable[[Part], str],
    timeout_s: float = PART_TIMEOUT_S,
) -> Iterator[Result]:
    """`work` of every part, in their order. `work` and the parts must be picklable where `workers` is above 1.

    The first failure in the order of the parts is raised, and no further part is begun. Raises BuildError for a
    process that is gone, and for a part that takes longer than `timeout_s`.
    """
    if workers == 1 or len(parts) <= 1:
        yield from map(work, parts)
        return
    # A fresh interpreter in every process: a fork would take along the threads' locks of loaded libraries.
    pool = ProcessPoolExecutor(min(workers, len(parts)), mp_context=get_context("spawn"), initializer=follow_parent)
    futures: list[Future] = []
    try:
        futures.extend(pool.submit(work, part) for part in parts)
        for part, future in zip(parts, futures, strict=True):
            yield _result(future, name_of(part), timeout_s)
    except BaseException:
        _end(pool, futures)
        raise
    pool.shutdown()


def follow_parent() -> None:
    """End this process with the one that started it, however that ends; an interrupt is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_end([sentinel])
    os._exit(1)


def _result(future: Future, name: str, timeout_s: float) -> Result:
    try:
        return future.result(timeout_s)
    except BrokenProcessPool:
        raise BuildError(
            f"a process that worked on {name}, or beside it, is gone (out of memory?); lower --workers and run again:"
            " what is done stays done"
        ) from None
    except Late:
        raise BuildError(f"{name} took longer than {timeout_s:.0f} s; leave it out or divide it") from None


def _end(pool: ProcessPoolExecutor, futures: list[Future]) -> None:
    """No further part begins; processes that do not end by themselves soon are ended."""
    pool.shutdown(wait=False, cancel_futures=True)
    running = [future for future in futures if future.running()]
    if wait(running, timeout=5.0).not_done:
        for process in list((pool._processes or {}).values()):
            process.terminate()
