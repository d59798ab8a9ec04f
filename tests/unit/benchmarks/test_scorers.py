"""What benchmarks/scorers.py promises, with fewer texts: no call takes too long, and one that does is seen."""

import importlib
import random
import re
from pathlib import Path

import pytest

from megatron_spell.types.play import TaskName


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
        yield importlib.import_module("scorers")


def test_no_call_takes_longer_than_the_limit(benchmark):
    texts = benchmark.fuzz(60, random.Random(0), sizes=(200, 2_000, 20_000))
    longest = benchmark.longest_calls(texts, keep=3)
    assert longest[0].ms < benchmark.LIMIT_MS, longest


def test_a_pattern_that_backtracks_is_seen(benchmark, monkeypatch):
    nested = re.compile(r"(?:1+,?)+x")
    (sound,) = benchmark.longest_calls(iter(["1" * 30]), (TaskName.MATH_QA,), keep=1)
    monkeypatch.setattr(benchmark, "score", lambda task, prediction, gold, tolerance: nested.match(prediction[:17]))
    (slow,) = benchmark.longest_calls(iter(["1" * 30]), (TaskName.MATH_QA,), keep=1)
    assert slow.ms > 5 * sound.ms
    assert "score" in slow.what


def test_rates_are_those_of_records_half_of_which_are_right(benchmark):
    found = benchmark.rates(list(benchmark.records(300, 100, random.Random(0))))
    assert {rate.task for rate in found} == set(TaskName)
    assert all(rate.per_second > 0 and 0.3 < rate.right < 0.7 for rate in found)


def test_a_call_over_the_limit_is_told_by_the_exit_code(benchmark, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scorers", "--records", "30", "--fuzz", "0"])
    monkeypatch.setattr(benchmark, "SIZES", (20,))
    monkeypatch.setattr(benchmark, "longest_calls", lambda texts: [benchmark.Call(51.0, "read", 9, "x")])
    assert benchmark.main() == 1
    assert "FELL SHORT: a call took 51.0 ms" in capsys.readouterr().out
