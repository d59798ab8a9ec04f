"""What benchmarks/data.py promises, with a small store: reads are checked, and falling short is seen."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
        yield importlib.import_module("data")


def test_reads_are_timed_and_wrong_ids_are_seen(benchmark, tmp_path):
    path = tmp_path / "read.h5"
    benchmark.write_read_store(path, np.arange(50_000, dtype=np.int32), 8)
    took = benchmark.read_ms(path, 8)
    assert len(took["store"]) == len(took["memmap"]) == 8
    assert min(took["store"]) < benchmark.LIMIT_MS
    plain = bytearray(path.with_suffix(".ids").read_bytes())
    plain[70_000] ^= 1
    path.with_suffix(".ids").write_bytes(plain)
    with pytest.raises(SystemExit, match="set-00001 holds other ids"):
        benchmark.read_ms(path, 8)


def test_all_ways_are_timed_in_every_repeat(benchmark, tmp_path, monkeypatch, capsys):
    figures = tmp_path / "figures.json"
    arguments = ["data", "--repeats", "1", "--sets", "4", "--workers", "1", "--json", str(figures)]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(benchmark, "LEAST_RATIO", 0.0)
    monkeypatch.setattr(benchmark, "LIMIT_MS", 1e9)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert benchmark.main() == 0
    told = capsys.readouterr().out
    assert all(way in told for way in ("memmap", "call alone", "whole build", "by processor time"))
    assert figures.stat().st_size > 100


def test_falling_short_is_told_by_the_exit_code(benchmark, capsys):
    console = Console(width=200)
    assert benchmark.verdict(console, 0.99, 0.81) == 0
    assert benchmark.verdict(console, 1.0, 0.81) == 1
    assert benchmark.verdict(console, 0.5, 0.79) == 1
    told = capsys.readouterr().out
    assert "a read takes 1.00 ms" in told
    assert "building reaches 0.79 of the bare tokenizer" in told
