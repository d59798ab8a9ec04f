"""What benchmarks/folder_memory.py promises, on a smaller folder: at most two buckets above the shard."""

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BUCKET_BYTES = 16 * 2**20


def test_reading_and_writing_a_folder_takes_two_buckets_above_the_shard(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    benchmark = importlib.import_module("folder_memory")
    monkeypatch.setattr(benchmark, "VOCAB", 40_001)  # an embedding of 156 MiB, and a padding row
    benchmark.make_folder(tmp_path / "model", num_layers=1)
    found = benchmark.measure(tmp_path, BUCKET_BYTES, rounds=1)
    assert found["equal"]
    for what in ("import", "export", "float32 import", "float32 export"):
        assert found[f"{what} bytes"] <= 2 * BUCKET_BYTES, what
    assert found["whole tensors bytes"] > 8 * BUCKET_BYTES, "the meter sees an embedding that is assembled"
