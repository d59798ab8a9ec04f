"""The benchmark measures what it says, and says so when bytes differ or the rate falls short."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.bridge.transports.parties import run

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(FOLDER))
    try:
        import wire_speed
    finally:
        sys.path.remove(str(FOLDER))
    return wire_speed


def both(benchmark, spoil=None) -> list[dict]:
    """What both sides measure, as threads; `spoil` is given the receiver."""
    port = benchmark.free_port()

    def one(rank: int):
        side = benchmark.Side(rank, port, 5000, 11)
        if rank == 1 and spoil:
            spoil(side)
        return benchmark.run(side, repeats=2)

    return run([lambda: one(0), lambda: one(1)])


def test_every_way_is_run_in_every_repeat(benchmark):
    for took in both(benchmark):
        assert set(took) == set(benchmark.WAYS)
        assert all(len(its.clock) == len(its.busier) == 2 for its in took.values())


@pytest.mark.parametrize("kind", ["shm", "gloo"])
def test_a_byte_that_did_not_land_is_seen(benchmark, kind):
    def spoil(side) -> None:
        receive = side.receive

        def careless(transport, **how) -> None:
            receive(transport, **how)
            if transport is getattr(side, kind):
                side.tensors[3][77] ^= 1

        side.receive = careless

    with pytest.raises(SystemExit, match=r"FELL SHORT: .*: what landed is not what was sent"):
        both(benchmark, spoil)


def test_ratios_are_of_one_repeat(benchmark):
    assert benchmark.ratios([2.0, 4.0], [1.0, 4.0]) == [0.5, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize(("least", "code"), [("0", 0), ("1000", 1)])
def test_the_script_runs_two_processes(tmp_path, least, code):
    file = tmp_path / "speeds.json"
    sizes = ["--bucket-mib", "0.1", "--buckets", "5", "--repeats", "2", "--least-ratio", least, "--json", str(file)]
    command = [sys.executable, str(FOLDER / "wire_speed.py"), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("FELL SHORT: shm reaches" in done.stdout) == bool(code)
    written = json.loads(file.read_text())
    assert written["num_bytes"] == 5 * int(0.1 * 2**20)
    assert all(s > 0 for its in written["seconds"].values() for s in its["clock"])
