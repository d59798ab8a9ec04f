import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_spell.cluster.guard import marked, start_guard, sweep
from megatron_spell.cluster.handles import ClusterError
from megatron_spell.cluster.local import (
    Launch,
    RankFailed,
    available_memory_bytes,
    check_port,
    free_port,
    own_address,
    run_ranks,
)

RANK = "tests.unit.cluster.rank_module"
ROOT = Path(__file__).parents[3]


def wait_until(condition, timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ports():
    port = free_port()
    check_port(port)
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(ClusterError, match=rf"port {port} cannot be used \(Address already in use\)"):
            check_port(port)


def test_available_memory_is_positive_and_below_the_total():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < available_memory_bytes() < total


def test_a_guarded_process_takes_its_children_and_grandchildren_with_it(tmp_path):
    """The child is killed hard, so nothing of its own can clean up."""
    script = (
        "import subprocess, sys, time\n"
        "from megatron_spell.cluster.guard import start_guard\n"
        "start_guard()\n"
        'nested = \'import subprocess, sys, time; p = subprocess.Popen([sys.executable, "-c", "import time; '
        "time.sleep(60)\"], start_new_session=True); print(p.pid, flush=True); time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-c', nested])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    pids = [int(parent.stdout.readline()), int(parent.stdout.readline())]
    assert all(map(alive, pids))
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not any(map(alive, pids)))


def test_a_sweep_takes_only_what_carries_the_mark(monkeypatch):
    monkeypatch.setenv("MEGATRON_SPELL_GUARD", "another mark")
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    mark = start_guard("this very mark")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert wait_until(lambda: marked(mark) == [child.pid])
    sweep(mark)
    assert child.wait(5) == -signal.SIGKILL and other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.slow
def test_ranks_see_each_other_and_their_settings(tmp_path, capfd):
    launch = Launch(
        RANK, ["say", str(tmp_path)], num_ranks=2, env={"MADE_UP": "yes"}, threads_per_rank=1, logs=tmp_path
    )
    run_ranks(launch)
    said = [(tmp_path / f"rank_{rank}").read_text().split() for rank in range(2)]
    assert said == [["0", "2", "yes", "1"], ["1", "2", "yes", "1"]]
    assert capfd.readouterr().out.strip() == "rank 0 speaks"


@pytest.mark.slow
def test_the_rank_that_fails_is_named_with_its_last_words(tmp_path):
    with pytest.raises(RankFailed, match=r"(?s)trainer rank 1 ended with exit code 3; its last lines:\n.*cannot go on"):
        run_ranks(Launch(RANK, ["fail", str(tmp_path)], num_ranks=2))
    with pytest.raises(RankFailed, match="trainer rank 1 was killed by SIGKILL") as caught:
        run_ranks(Launch(RANK, ["be_killed", str(tmp_path)], num_ranks=2))
    assert (caught.value.rank, caught.value.exit_code) == (1, 137)


def test_a_taken_port_is_refused_before_anything_starts():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(ClusterError, match="give another, 0 for any"):
            run_ranks(Launch(RANK, port=taken.getsockname()[1]))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_launcher(tmp_path, how):
    script = (
        "from megatron_spell.cluster.local import Launch, run_ranks\n"
        f"run_ranks(Launch({RANK!r}, ['hang', {str(tmp_path)!r}], num_ranks=2))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    files = [tmp_path / f"rank_{rank}" for rank in range(2)]
    assert wait_until(lambda: all(f.exists() and f.read_text() for f in files), 120)
    pids = [int(f.read_text()) for f in files]
    assert all(map(alive, pids))
    launcher.send_signal(how)
    launcher.wait(90)
    assert wait_until(lambda: not any(map(alive, pids)))


def test_the_own_address_can_be_listened_on():
    with socket.socket() as listener:
        listener.bind((own_address(), 0))
