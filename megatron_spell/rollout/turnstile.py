"""Keeps completions and weight updates of one engine apart."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

from megatron_spell.rollout.engine import EngineError, EngineTimeout, EngineUnusable

LOOK_S = 0.5  # how often a wait that requests are held in is looked at
T = TypeVar("T")


class Turnstile:
    """Requests pass while it is open; an update closes it, waits until the last request has left, and opens it again.

    `version` is the policy version of the weights behind it. One event loop only.
    """

    def __init__(self, name: str, version: int = 0) -> None:
        self.name = name
        self.version = version
        self.num_inside = 0
        self.broken: str | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._broken = asyncio.Event()
        self._opened_at = time.monotonic()
        self._open_s = 0.0  # before that

    @property
    def updating(self) -> bool:
        return not self._open.is_set()

    @property
    def open_s(self) -> float:
        """For how long it was open so far: a clock that stands still while requests are held."""
        return self._open_s + (0.0 if self.updating else time.monotonic() - self._opened_at)

    @asynccontextmanager
    async def request(self, timeout_s: float) -> AsyncIterator[None]:
        """Hold a place for one request; waits for an update under way. Raises EngineUnusable, EngineTimeout."""
        await self._wait(self._open, timeout_s, "its weight update to finish")
        self.check()
        self.num_inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.num_inside -= 1
            if self.num_inside == 0:
                self._empty.set()

    async def close(self, timeout_s: float, *, drain: bool = True) -> None:
        """Let no further request in and, with `drain`, wait for those inside. Raises EngineUnusable, EngineTimeout."""
        self.check()
        if self.updating:
            raise EngineError(f"{self.name}: a weight update is already under way")
        self._open_s = self.open_s
        self._open.clear()
        if not drain:
            return
        try:
            await self._wait(self._empty, timeout_s, f"{self.num_inside} request(s) in flight")
        except BaseException:
            self._reopen()
            raise

    def reopen(self, version: int) -> None:
        self.version = version
        self._reopen()

    async def while_open(self, limit_s: float, work: Awaitable[T], what: str) -> T:
        """The result of `work`. Raises EngineTimeout when it took longer than `limit_s` without the time held."""
        begun, call = self.open_s, asyncio.ensure_future(work)
        try:
            while not call.done():
                left_s = limit_s - (self.open_s - begun)
                if left_s <= 0:
                    raise EngineTimeout(f"{self.name}: waited {limit_s:g} s for {what}")
                await asyncio.wait({call}, timeout=max(left_s, LOOK_S) if self.updating else left_s)
            return call.result()
        finally:
            call.cancel()

    def expect_update(self) -> None:
        """Raises EngineError when no update was begun, EngineUnusable after a broken one."""
        self.check()
        if not self.updating:
            raise EngineError(f"{self.name}: no weight update was begun")

    def break_down(self, reason: str) -> None:
        """Refuse every request from now on, including those that wait."""
        self.broken = self.broken or reason
        self._reopen()
        self._broken.set()

    async def until_broken(self) -> NoReturn:
        """Wait for `break_down`, then raise EngineUnusable: who is inside learns that nothing will come any more."""
        await self._broken.wait()
        self.check()
        raise AssertionError("broken without a reason")

    def check(self) -> None:
        if self.broken is not None:
            raise EngineUnusable(f"{self.name} is unusable: {self.broken}")

    def _reopen(self) -> None:
        if self.updating:
            self._opened_at = time.monotonic()
        self._open.set()

    async def _wait(self, event: asyncio.Event, timeout_s: float, what: str) -> None:
        """Return with `event` set at this very moment: a waiter wakes after it was set, when it may be clear again."""
        try:
            async with asyncio.timeout(timeout_s):
                while not event.is_set():
                    await event.wait()
        except TimeoutError:
            raise EngineTimeout(f"{self.name}: waited {timeout_s:g} s for {what}") from None


async def unless(interruption: Coroutine[Any, Any, NoReturn], work: Awaitable[T]) -> T:
    """The result of `work`, or what `interruption` raises before that is there."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(interruption)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return await next(task for task in tasks if task.done())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
