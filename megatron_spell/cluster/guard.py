"""Ends the processes that a process leaves behind when it dies, however it dies.

A child may outlive its parent for good: vLLM's engine core waits on a socket for ever, torchrun's ranks on each other.
`start_guard` marks this process's future children through their environment and starts a small watcher, which wakes up
when this process is gone (pidfd, Linux 5.3) and kills whatever carries the mark. The file runs as a script too: the
watcher imports nothing of the package.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "MEGATRON_SPELL_GUARD"
SWEEP_INTERVAL_S = 0.1
QUIET_SWEEPS = 5  # a process under way between fork and exec may show up late


def start_guard(mark: str | None = None) -> str:
    """Guard this process's children from now on; gives the mark they carry.

    `mark` is one that this process was started with, where the caller chose it; then its forks are covered too.
    """
    mark = mark or f"{os.getpid()}-{time.time_ns()}"
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    subprocess.Popen(
        [sys.executable, "-S", "-E", __file__, str(os.getpid()), mark],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C on the terminal or a killed process group must not end the watcher first
    )
    os.environ[MARK] = mark
    return mark


def marked(mark: str) -> list[int]:
    """The processes that carry the mark, without this one."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def sweep(mark: str) -> None:
    """Kill what carries the mark until nothing does."""
    quiet = 0
    while quiet < QUIET_SWEEPS:
        pids = marked(mark)
        quiet = 0 if pids else quiet + 1
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(SWEEP_INTERVAL_S)


def wait_for_end(pid: int) -> None:
    """Return when process `pid`, our parent, has ended."""
    try:
        watched = os.pidfd_open(pid)
    except OSError:
        return
    if os.getppid() == pid:  # else it ended before we looked, and the number may be someone else's
        select.select([watched], [], [])


if __name__ == "__main__":
    wait_for_end(int(sys.argv[1]))
    sweep(sys.argv[2])
