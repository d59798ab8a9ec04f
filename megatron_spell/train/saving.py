"""A save that goes on in a thread of its own: one at a time, waited for within a limit, its failure told once."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


class SaveTimeout(TimeoutError):
    """A save did not end within the limit; the message says whose and at what it was."""


class BackgroundSave:
    """At most one save under way on this rank.

    `who` names the rank in messages, `limit_s` bounds every wait. The thread does not keep the process alive: who is
    about to end calls `settle` first.
    """

    def __init__(self, who: str, limit_s: float) -> None:
        self._who, self._limit_s = who, limit_s
        self._what = ""
        self._under_way: Future[None] | None = None

    def start(self, what: str, work: Callable[[], None]) -> Future[None]:
        """Wait for the save before (raising what it raised), then begin `work`. The future tells when it ended."""
        self.settle()
        future: Future[None] = Future()
        self._what, self._under_way = what, future
        threading.Thread(target=_run, args=(work, future), name="save", daemon=True).start()
        return future

    def settle(self) -> None:
        """Wait until nothing is under way. Raises what the save raised, once; SaveTimeout beyond the limit."""
        future, self._under_way = self._under_way, None
        if future is None:
            return
        try:
            future.result(self._limit_s)
        except TimeoutError:
            if future.done():
                raise
            raise SaveTimeout(
                f"checkpoint.timeout_s: {self._who} waited {self._limit_s:g} s for its save of {self._what}"
            ) from None


def _run(work: Callable[[], None], future: "Future[None]") -> None:
    try:
        work()
    except BaseException as error:  # told by whoever waits
        future.set_exception(error)
    else:
        future.set_result(None)
