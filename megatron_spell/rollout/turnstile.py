"""Keeps completions and weight updates of one engine apart."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

from megatron_spell.rollout.engine import EngineError, EngineTimeout, EngineUnusable


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

    @property
    def updating(self) -> bool:
        return not self._open.is_set()

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
        self._open.clear()
        if not drain:
            return
        try:
            await self._wait(self._empty, timeout_s, f"{self.num_inside} request(s) in flight")
        except BaseException:
            self._open.set()
            raise

    def reopen(self, version: int) -> None:
        self.version = version
        self._open.set()

    def expect_update(self) -> None:
        """Raises EngineError when no update was begun, EngineUnusable after a broken one."""
        self.check()
        if not self.updating:
            raise EngineError(f"{self.name}: no weight update was begun")

    def break_down(self, reason: str) -> None:
        """Refuse every request from now on, including those that wait."""
        self.broken = self.broken or reason
        self._open.set()
        self._broken.set()

    async def until_broken(self) -> NoReturn:
        """Wait for `break_down`, then raise EngineUnusable: who is inside learns that nothing will come any more."""
        await self._broken.wait()
        self.check()
        raise AssertionError("broken without a reason")

    def check(self) -> None:
        if self.broken is not None:
            raise EngineUnusable(f"{self.name} is unusable: {self.broken}")

    async def _wait(self, event: asyncio.Event, timeout_s: float, what: str) -> None:
        """Return with `event` set at this very moment: a waiter wakes after it was set, when it may be clear again."""
        try:
            async with asyncio.timeout(timeout_s):
                while not event.is_set():
                    await event.wait()
        except TimeoutError:
            raise EngineTimeout(f"{self.name}: waited {timeout_s:g} s for {what}") from None
