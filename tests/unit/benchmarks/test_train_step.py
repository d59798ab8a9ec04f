"""What the benchmark compares, and that it says so when something falls short."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from megatron_spell.config.model_shape import ModelShape

OPTIONS = argparse.Namespace(answer=256, answers=8, groups=1, ways=["shared", "separate", "padded"])


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module; it finds its neighbours as it does when run."""
    folder = str(Path(__file__).parents[3] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import train_step
    finally:
        sys.path.remove(folder)
    return train_step


@pytest.fixture
def ways(benchmark):
    """Ways over a prompt of 4096, timed exactly as their FLOPs promise and with equal gradients."""
    ways = benchmark.make_ways(OPTIONS, 4096, ModelShape.load(benchmark.BASE_MODEL))
    for way in ways.values():
        way.gradients = [torch.tensor([3.0, 4.0])]
        way.seconds, way.peak_bytes = [way.flops / 1e11], [2**20]
    return ways


def judged(benchmark, ways) -> list[str]:
    return benchmark.judge(Console(quiet=True), "cpu", OPTIONS, 4096, ways)


def test_all_ways_train_the_same_tokens(ways):
    trained = [
        sorted((int(row), int(label)) for one in way.batch.bins_D_B[0] for row, label in zip(one.row_A, one.labels_A))
        for way in ways.values()
    ]
    assert trained[0] == trained[1] == trained[2]
    assert len(trained[0]) == pytest.approx(8 * 256, rel=0.01)
    lengths = {name: [one.num_tokens for one in way.batch.bins_D_B[0]] for name, way in ways.items()}
    assert len(lengths["shared"]) == 1
    assert max(lengths["separate"]) <= lengths["shared"][0]
    assert lengths["padded"] == [max(lengths["padded"])] * 8


def test_what_keeps_its_promise_passes(benchmark, ways):
    assert judged(benchmark, ways) == []
    assert ways["separate"].flops / ways["shared"].flops > 3.5


def test_gradients_that_differ_are_named(benchmark, ways):
    ways["padded"].gradients = [torch.tensor([3.0, 4.001])]
    assert judged(benchmark, ways) == ["prompt 4096, padded: the gradients differ by 2.0e-04 of their norm"]


def test_gradients_that_are_not_numbers_are_named(benchmark, ways):
    ways["separate"].gradients = [torch.tensor([np.nan, 4.0])]
    assert "the gradients differ by nan" in judged(benchmark, ways)[0]


def test_sharing_that_is_too_slow_is_named(benchmark, ways):
    ways["shared"].seconds = [1.35 * ways["shared"].seconds[0]]
    slow, short, padded = judged(benchmark, ways)
    assert "3.5 is asked for" in slow
    assert "is not within 1.3 of the FLOP ratio 4.62" in short
    assert "padded" in padded


def test_the_model_of_a_gpu_has_about_a_billion_parameters(benchmark):
    assert 1e9 < benchmark.ABOUT_1B.num_parameters < 1.3e9
