"""What the benchmark of a refresh counts, and that it says so when something falls short."""

import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import made_shape


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module; it finds its neighbours as it does when run."""
    folder = str(Path(__file__).parents[3] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import refresh

        yield refresh
    finally:
        sys.path.remove(folder)


def seen(benchmark, **changes):
    whole = {
        "num_tensors": 9,
        "bound_bytes": 1000,
        "bytes": {"bridge": 1010, "plain": 2000},
        "messages": {"bridge": 2, "plain": 9},
        "clock_s": {"bridge": [0.1, 0.2], "plain": [0.6, 1.2]},
        "processor_s": {"bridge": [0.1, 0.2], "plain": [0.6, 1.2]},
        "cold_s": 0.5,
        "equal": True,
    }
    return benchmark.Ways(**(whole | changes))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"equal": False}, "the two ways end with different bits"),
        ({"bytes": {"bridge": 1021, "plain": 2000}}, "1021 bytes moved, the bound is 1000"),
        (
            {"clock_s": {"bridge": [0.3, 0.2], "plain": [0.6, 0.8]}},
            "3.00 times as fast as the plain way, 5 is asked for",
        ),
    ],
)
def test_what_falls_short_is_said(benchmark, changes, fault):
    found = benchmark.judge_ways(Console(quiet=True), seen(benchmark, **changes))
    assert found == ([fault] if fault else [])


def test_dear_python_is_said(benchmark):
    from python_cost import Cost

    costs = [Cost("small", "worker", 1, 1, 0.1, 0.1, [0.04]), Cost("large", "worker", 1, 1, 0.1, 0.1, [0.06, 0.07])]
    assert benchmark.judge_python(Console(quiet=True), costs) == ["large: 65.0 ms of Python on a worker"]


def test_nothing_stays_replaced_and_all_is_counted(benchmark, monkeypatch):
    """A small model instead of the real one: three workers' experts in as many buckets as bytes ask for."""
    import python_cost

    from megatron_spell.bridge import receipts

    copy, hashed = torch._foreach_copy_, receipts.of_sources
    shape = made_shape(family="qwen3_moe", tied=False)
    monkeypatch.setattr(python_cost, "LAYOUTS", ((Mesh(tp=2), EngineMesh(tp=2), 2),))
    monkeypatch.setattr(python_cost, "BUCKET_BYTES", 4096)
    trainer, worker = python_cost.costs(shape, repeats=2)
    assert (torch._foreach_copy_, receipts.of_sources) == (copy, hashed)
    assert trainer.side == "trainer"
    assert worker.side == "worker"
    assert all(len(cost.warm_s) == 2 and cost.num_buckets > 1 and cost.cold_s > 0 for cost in (trainer, worker))
    assert trainer.num_copies > worker.num_copies > 0, "a trainer serves both engines"
