"""The benchmark runs end to end, and its exit code says whether the rate was reached."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks/refresh_one_device.py"
SMALL = ("--layers", "2", "--hidden", "128", "--bucket-mib", "4", "--repeats", "2")


@pytest.mark.slow
def test_every_way_brings_every_bit_and_a_rate_that_is_not_reached_is_told(tmp_path):
    found = subprocess.run(
        [sys.executable, str(SCRIPT), *SMALL, "--least-ratio", "50", "--json", str(tmp_path / "took.json")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 1, found.stderr
    assert "FELL SHORT: direct reaches" in found.stdout
    assert (tmp_path / "took.json").is_file()
