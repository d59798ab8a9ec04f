"""Real processes side by side: skipped, finished, failed, too slow, interrupted. They stand in for training runs."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
from collecting import minutes
from plan import planned_runs
from running import Runner, last_line

# A program that gets the run's arguments: it finds its folder in them, and does what `say` is.
PROGRAM = """
import os, pathlib, sys, time
folder = pathlib.Path(next(a for a in sys.argv if a.startswith("run_folder=")).split("=", 1)[1])
seed = next(a for a in sys.argv if a.startswith("seed=")).split("=")[1]
(folder / "core.txt").write_text(f"{sorted(os.sched_getaffinity(0))} {os.environ['OMP_NUM_THREADS']}")
def finish():
    (folder / "summary.json").write_text("{}")
"""


@pytest.fixture
def runs(experiment, tmp_path):
    """One variant, three seeds, without the notes that a real run's inputs need."""
    planned = planned_runs(experiment.only(["full"], []), tmp_path)
    return [replace(run, file=run.file.resolve()) for run in planned]


@pytest.fixture
def runner(monkeypatch):
    told = []

    def make(program: str, **more) -> Runner:
        command = (sys.executable, "-c", PROGRAM + program)
        settings = {"parallel": 2, "limit_s": 30.0, "pin": False} | more
        return Runner(tell=lambda run, ended: told.append((run.seed, ended)), command=command, **settings)

    make.told = told
    return make


def test_what_is_finished_is_skipped_and_the_rest_is_run(runs, runner):
    runs[1].folder.mkdir(parents=True)
    (runs[1].folder / "summary.json").write_text("{}")
    ended = runner("finish()").all(runs)
    assert [(e.run.seed, e.fault, e.skipped) for e in ended] == [(0, None, False), (1, None, True), (2, None, False)]
    assert not (runs[1].folder / "core.txt").exists()
    assert sorted(seed for seed, one in runner.told if one is None) == [0, 2]
    assert all(e.skipped for e in runner("raise SystemExit(1)").all(runs))
    assert 0 < minutes(runs[0].folder) < 1 and minutes(runs[1].folder) is None


def test_a_failure_is_named_and_the_others_go_on(runs, runner):
    program = "print('why it failed') or sys.exit(3) if seed == '0' else (None if seed == '1' else finish())"
    first, second, third = runner(program).all(runs)
    assert first.fault == "exit code 3: why it failed"
    assert "ended without a summary" in second.fault
    assert third.fault is None
    again = runner("finish()").all(runs)  # the same command goes on with what is not there
    assert [e.fault for e in again] == [None] * 3 and [e.skipped for e in again] == [False, False, True]
    assert len((runs[0].folder / "attempts.jsonl").read_text().splitlines()) == 2


def test_a_run_past_its_time_is_ended(runs, runner):
    began = time.monotonic()
    (ended,) = runner("print('begun', flush=True); time.sleep(60)", limit_s=1.0).all(runs[:1])
    assert ended.fault == "took more than 0.0166667 minutes"
    assert time.monotonic() - began < 20


def test_cores_are_shared_out(runs, runner):
    before = os.sched_getaffinity(0)
    runner("time.sleep(0.5); finish()", parallel=2, pin=True).all(runs[:2])
    said = sorted((run.folder / "core.txt").read_text() for run in runs[:2])
    cores = sorted(before)
    assert said == sorted(f"[{cores[slot % len(cores)]}] 1" for slot in range(2))
    assert os.sched_getaffinity(0) == before


def test_an_interrupt_ends_the_runs_under_way_and_begins_no_other(runs, runner):
    slow = runner("print('begun', flush=True); (folder / 'begun').touch(); time.sleep(60)", parallel=1)
    # a shell's background job is born deaf to it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Thread(target=interrupt_when, args=(runs[0].folder / "begun",))
    timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            slow.all(runs)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 25
    assert not runs[1].folder.exists()
    assert json.loads((runs[0].folder / "attempts.jsonl").read_text())["seconds"] > 0


def interrupt_when(path) -> None:
    limit = time.monotonic() + 20
    while not path.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(os.getpid(), 2)


def test_the_last_line_of_a_log(tmp_path):
    log = tmp_path / "console.log"
    log.write_bytes(b"one\ntwo \xff\n\n")
    assert last_line(log) == "two \ufffd"
    log.write_text("")
    assert "is empty" in last_line(log)
