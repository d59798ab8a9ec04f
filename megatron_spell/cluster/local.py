"""Trainer ranks on this machine under torchrun, and what this machine has: ports and memory."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_spell.cluster.guard import MARK, start_guard, sweep
from megatron_spell.cluster.handles import ClusterError

ANY_HOST = ""
TAIL_LINES = 15
GRACE_S = 10.0  # what ranks get to end themselves after SIGTERM
# torchrun's report, in torch/distributed/elastic/multiprocessing/api.py (the same since torch 1.9)
FAILURE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: \d+\)")


class RankFailed(ClusterError):
    """A trainer rank ended with an error; the message names it and gives its last lines."""

    def __init__(self, message: str, rank: int | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.rank = rank
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Launch:
    """`num_ranks` processes of `python -m module *argv`.

    Rank 0's stdout is this process's; every other output goes to files under `logs` (a temporary folder when None).
    `port` 0 takes a free one. `threads_per_rank` 0 shares the cores out. `env` is added to this process's.
    """

    module: str
    argv: Sequence[str] = ()
    num_ranks: int = 1
    env: Mapping[str, str] | None = None
    port: int = 0
    threads_per_rank: int = 0
    logs: Path | None = None


def run_ranks(launch: Launch) -> None:
    """Run the ranks to their end. Raises RankFailed for the first that fails, ClusterError for a taken port.

    On Ctrl-C and on SIGTERM the ranks are ended before KeyboardInterrupt or SystemExit goes on; when this process is
    killed they go with it.
    """
    if launch.port:
        check_port(launch.port)
    with contextlib.ExitStack() as stack:
        logs = launch.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ranks-")))
        logs.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_sigterm_as_exit())
        mark = stack.enter_context(_guarded())
        report = logs / "torchrun.log"
        with report.open("wb") as stderr:
            torchrun = subprocess.Popen(
                _command(launch, logs), env=_environment(launch), stderr=stderr, start_new_session=True
            )
        try:
            exit_code = torchrun.wait()
        except BaseException:
            _end(torchrun)
            raise
        finally:
            sweep(mark)
        if exit_code:
            raise _failure(logs, report.read_text(errors="replace"), exit_code)


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((ANY_HOST, 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raises ClusterError when `port` cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((ANY_HOST, port))
        except OSError as error:
            raise ClusterError(f"port {port} cannot be used ({error.strerror}); give another, 0 for any") from None


def available_memory_bytes() -> int:
    """What a process may still take: the kernel's estimate, and the control group's limit where that is lower."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min([available, *_control_group_room()])


def _control_group_room() -> list[int]:
    """Limit minus use of control group v2 and v1, where there is a limit."""
    root = Path("/sys/fs/cgroup")
    pairs = [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]
    rooms = []
    for limit, used in pairs:
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            rooms.append(max(0, int((root / limit).read_text()) - int((root / used).read_text())))
    return rooms


def _command(launch: Launch, logs: Path) -> list[str]:
    redirects = ",".join(["0:2", *(f"{rank}:3" for rank in range(1, launch.num_ranks))])  # 2: stderr, 3: both
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(launch.num_ranks)),
        *("--master-addr", "127.0.0.1", "--master-port", str(launch.port or free_port()), "--max-restarts", "0"),
        *("--log-dir", str(logs), "--redirects", redirects),
        *("-m", launch.module, *launch.argv),
    ]


def _environment(launch: Launch) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0))
    threads = launch.threads_per_rank or max(1, cores // launch.num_ranks)
    return {**os.environ, "OMP_NUM_THREADS": str(threads), **(launch.env or {})}


@contextlib.contextmanager
def _guarded() -> Iterator[str]:
    """Children started meanwhile carry a mark and end when this process does."""
    before = os.environ.get(MARK)
    mark = start_guard()
    try:
        yield mark
    finally:
        if before is None:
            os.environ.pop(MARK, None)
        else:
            os.environ[MARK] = before


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM would end this process without running a `finally`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(torchrun: subprocess.Popen) -> None:
    """Ask torchrun to end its ranks; the sweep that follows takes what is left after the grace period."""
    torchrun.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        torchrun.wait(GRACE_S)


def _failure(logs: Path, report: str, exit_code: int) -> RankFailed:
    found = FAILURE.search(report)
    if found is None:
        return RankFailed(f"torchrun ended with exit code {exit_code}: {_tail(report)}", exit_code=exit_code)
    code, rank = int(found[1]), int(found[2])
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    outputs = sorted(logs.glob(f"*/attempt_0/{rank}/stderr.log"), key=lambda file: file.stat().st_mtime)
    words = _tail(outputs[-1].read_text(errors="replace")) if outputs else ""
    return RankFailed(f"trainer rank {rank} {how}; its last lines:\n{words}", rank, 128 - code if code < 0 else code)


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-TAIL_LINES:])


def own_address() -> str:
    """The address of this machine by which others on its network reach it; loopback when it has no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1: connecting a datagram socket picks a route and sends nothing
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]
