"""Start the ranks of a small gloo group as processes, with a hard limit on how long they may take."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run_ranks(script: Path, num_ranks: int, *argv: str, timeout_s: float = 180.0) -> None:
    """Run `python script *argv` as ranks 0..num_ranks-1 that find each other through the usual environment.

    Raises AssertionError with the output of the first rank that fails, or of all when the time is up. No process stays.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        logs = [Path(folder) / f"rank{rank}.txt" for rank in range(num_ranks)]
        ranks = [_start(script, argv, rank, num_ranks, port, log) for rank, log in enumerate(logs)]
        try:
            _wait(ranks, logs, timeout_s)
        finally:
            for process in ranks:
                process.kill()
                process.wait()


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(script: Path, argv: tuple[str, ...], rank: int, num_ranks: int, port: int, log: Path) -> subprocess.Popen:
    rendezvous = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": num_ranks,
    }
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ,
        **{name: str(value) for name, value in rendezvous.items()},
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, str(script), *argv], env=env, stdout=output, stderr=subprocess.STDOUT)


def _wait(ranks: list[subprocess.Popen], logs: list[Path], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(process.poll() is None for process in ranks):
        _raise_first_failure(ranks, logs)
        if time.monotonic() > deadline:
            outputs = "\n".join(f"--- rank {rank}\n{_tail(log)}" for rank, log in enumerate(logs))
            raise AssertionError(f"{len(ranks)} ranks were not done after {timeout_s:g} s\n{outputs}")
        time.sleep(0.05)
    _raise_first_failure(ranks, logs)


def _raise_first_failure(ranks: list[subprocess.Popen], logs: list[Path]) -> None:
    for rank, process in enumerate(ranks):
        if process.poll():
            raise AssertionError(f"rank {rank} of {len(ranks)} ended with {process.returncode}\n{_tail(logs[rank])}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
