"""Objects in Ray actors: on this machine alone, or on a Ray cluster that is joined."""

import asyncio
import contextlib
import logging
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError, TaskCancelledError

from megatron_spell.cluster.guard import MARK, start_guard
from megatron_spell.cluster.handles import ActorDied, CallTimeout, ClusterError, build, run_method

OBJECT_STORE_BYTES = 2**30  # prompts of requests under way pass through it: 512 at 128K tokens take a quarter
MAX_CALLS = 15_000  # open at once, as Ray Serve has it; by default 1000, behind which an update or a close would wait
LOG_TAIL_LINES = 5
LOG_TAIL_BYTES = 4096


class RayCluster:
    """A connection of this process to Ray; `close` ends Ray again where `start` had started it."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    @classmethod
    def start(cls, address: str | None = None, *, num_cpus: int | None = None, timeout_s: float = 60.0) -> "RayCluster":
        """Start Ray on this machine (address None), or join the cluster at "auto" or "host:port".

        `num_cpus` counts for placing actors only (None: the cores). Raises ClusterError in one line.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own future rule; warns otherwise
        os.environ.setdefault("RAY_worker_niceness", "0")  # by default 15, under trainers on the same CPU
        if address is not None:
            _check_joinable(address, timeout_s)
        own: dict[str, Any] = {
            "num_cpus": num_cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_system_config": {"prestart_worker_first_driver": False},  # one idle process per core otherwise
        }
        try:
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **(own if address is None else {}),
            )
        except Exception as error:
            what = "start on this machine" if address is None else f"join the cluster at {address}"
            raise ClusterError(f"Ray could not {what}: {_first_line(error)}") from None
        return cls(address)

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
    ) -> "RayHandle":
        """Build the object named "module:Class" in a process of its own, with `env` set before anything is imported.

        `log` takes the output of that process and its children (Ray's session folder otherwise). Raises ClusterError
        when no process can be had within `timeout_s` (resources), and what the factory raises.
        """
        mark = uuid.uuid4().hex
        options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "runtime_env": {"env_vars": {**(env or {}), MARK: mark}},
            "max_concurrency": MAX_CALLS,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        actor = ray.remote(_Host).options(**options).remote(mark, str(log) if log else None)
        handle = RayHandle(actor, name, log)
        try:
            await handle.invoke(
                "ready", (), timeout_s=timeout_s, what=f"a process with {num_cpus:g} cpu and {num_gpus:g} gpu"
            )
            await handle.invoke("build", (factory, dict(kwargs)), timeout_s=timeout_s, what=factory)
        except BaseException:
            await handle.close(timeout_s=0)
            raise
        return handle

    def close(self) -> None:
        with contextlib.suppress(RayError):
            ray.shutdown()


class RayHandle:
    """An object in a Ray actor."""

    def __init__(self, actor: Any, name: str, log: Path | None) -> None:
        self.name = name
        self._actor = actor
        self._log = log
        self._closed = False

    async def call(self, method: str, *args: Any, timeout_s: float, **kwargs: Any) -> Any:
        return await self.invoke("call", (method, args, kwargs), timeout_s=timeout_s, what=method)

    async def close(self, timeout_s: float = 30.0) -> None:
        if self._closed:
            return
        if timeout_s > 0:
            with contextlib.suppress(ClusterError):
                await self.invoke("close", (), timeout_s=timeout_s, what="close")
        self._closed = True
        with contextlib.suppress(RayError):
            ray.kill(self._actor)

    async def invoke(self, method: str, args: tuple, *, timeout_s: float, what: str) -> Any:
        """Run a method of the actor itself."""
        if self._closed:
            raise ActorDied(f"{self.name} was closed")
        reference = getattr(self._actor, method).remote(*args)
        try:
            return await asyncio.wait_for(_result(reference), timeout_s)
        except (TimeoutError, GetTimeoutError):
            ray.cancel(reference, recursive=False)
            raise CallTimeout(f"{self.name}: waited {timeout_s:g} s for {what}") from None
        except asyncio.CancelledError:
            ray.cancel(reference, recursive=False)
            raise
        except RayActorError as error:
            raise ActorDied(f"{self.name} died: {_death(error)}{self._last_words()}") from None
        except TaskCancelledError:
            raise ClusterError(f"{self.name}: {what} was cancelled") from None
        except RayTaskError as error:
            raise error.cause from None

    def _last_words(self) -> str:
        if self._log is None or not self._log.is_file():
            return ""
        tail = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return f"; {self._log} ends: {' | '.join(line.strip() for line in tail if line.strip())}"


class _Host:
    """The actor: holds one object. Its methods are async so that calls overlap."""

    def __init__(self, mark: str, log: str | None) -> None:
        start_guard(mark)
        if log is not None:
            _redirect_output(Path(log))
        self._held: Any = None

    async def ready(self) -> None: ...

    async def build(self, factory: str, kwargs: dict[str, Any]) -> None:
        self._held = build(factory, kwargs)

    async def call(self, method: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        return await run_method(self._held, method, args, kwargs)

    async def close(self) -> None:
        if hasattr(self._held, "close"):
            await run_method(self._held, "close", (), {})


async def _result(reference: Any) -> Any:
    return await reference


def _redirect_output(log: Path) -> None:
    """Send file descriptors 1 and 2 to `log`, which children inherit."""
    log.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def _check_joinable(address: str, timeout_s: float) -> None:
    """Join and leave in a process that can be ended: ray.init retries a dead or a foreign address for minutes."""
    if address != "auto" and not re.fullmatch(r".+:\d+", address):
        raise ClusterError(f'cluster.ray_address is {address!r}; write "auto" or host:port')
    joining = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", joining, address], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"no Ray cluster answers at {address} within {timeout_s:g} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ClusterError(f"Ray could not join the cluster at {address}: {last}")


def _death(error: RayActorError) -> str:
    """The sentence of Ray's long text that gives the cause."""
    text = " ".join(str(error).split())
    for begin in ("Worker exit detail: ", "The actor died because "):
        if begin in text:
            text = text.split(begin, 1)[1]
    return text.split(" Some common causes", 1)[0].split(". ", 1)[0].rstrip(".")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
