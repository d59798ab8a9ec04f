"""What the upper floors know of an object that lives in another process."""

import asyncio
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class ClusterError(ValueError):
    """A process could not be started, reached or waited for; one line that names it."""


class ActorDied(ClusterError):
    """The process that held the object is gone."""


class CallTimeout(ClusterError):
    """The object did not answer within the time limit."""


class Handle(Protocol):
    """An object elsewhere: `call` runs one of its methods there."""

    name: str

    async def call(self, method: str, *args: Any, timeout_s: float, **kwargs: Any) -> Any:
        """The method's result; arguments and results are plain values, numpy arrays and records of them.

        What the method raises is raised here. Raises ActorDied, CallTimeout. Cancelling the call cancels the method.
        """
        ...

    async def close(self, timeout_s: float = 30.0) -> None:
        """Let the object close itself, then end its process and every process it started. Idempotent."""
        ...


class Cluster(Protocol):
    """Where objects are put."""

    async def spawn(
        self,
        factory: str,
        kwargs: Mapping[str, Any],
        *,
        name: str,
        num_cpus: float = 1,
        num_gpus: float = 0,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        timeout_s: float = 60.0,
    ) -> Handle:
        """Build the object named "package.module:Name" and give a handle on it. Raises ClusterError."""
        ...


class LocalCluster:
    """Builds everything in this process; `env` and resources mean nothing here."""

    async def spawn(self, factory: str, kwargs: Mapping[str, Any], *, name: str, **_: Any) -> "LocalHandle":
        return LocalHandle(build(factory, dict(kwargs)), name)


class LocalHandle:
    """The object in this process, on this event loop."""

    def __init__(self, held: Any, name: str) -> None:
        self.name = name
        self._held = held

    async def call(self, method: str, *args: Any, timeout_s: float, **kwargs: Any) -> Any:
        if self._held is None:
            raise ActorDied(f"{self.name} was closed")
        try:
            return await asyncio.wait_for(run_method(self._held, method, args, kwargs), timeout_s)
        except TimeoutError:
            raise CallTimeout(f"{self.name}: waited {timeout_s:g} s for {method}") from None

    async def close(self, timeout_s: float = 30.0) -> None:
        held, self._held = self._held, None
        if hasattr(held, "close"):
            await asyncio.wait_for(run_method(held, "close", (), {}), timeout_s)


def build(factory: str, kwargs: dict[str, Any]) -> Any:
    """Call the factory named "package.module:Name". Raises ClusterError when there is none of that name."""
    module, _, attribute = factory.partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ClusterError(f"{factory!r} names no factory ({error}); write it as package.module:Name") from None
    return make(**kwargs)


async def run_method(held: Any, method: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run a plain or an async method."""
    result = getattr(held, method)(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result
