"""A suite asked through a scripted engine, and what a run keeps of it."""

import asyncio
import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from megatron_spell.config.check import violations
from megatron_spell.evaluation.benchmark_folder import BenchmarkFolder
from megatron_spell.evaluation.results import read_results
from megatron_spell.evaluation.suite import Suite, suite_line, suite_metrics
from megatron_spell.rollout.engine import EngineDied
from megatron_spell.train.preflight import faults
from megatron_spell.train.run import Run
from megatron_spell.train.run_folder import RunFolder
from tests.tiny_tokenizer import write_byte_tokenizer
from tests.unit.evaluation.made_records import FRAMES, LONGBENCH_V2
from tests.unit.selfplay.playing import Script, make_config, make_table

RIGHT, WRONG = "The correct answer is Jane Ballou", "The correct answer is nobody"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def files(tmp_path):
    frames, letters = tmp_path / "frames.jsonl", tmp_path / "v2.jsonl"
    frames.write_text("".join(json.dumps(FRAMES | {"ID": str(number)}) + "\n" for number in range(5)))
    letters.write_text(json.dumps(LONGBENCH_V2) + "\n")
    return [str(frames), str(letters)]


def suite_table(folder, files, answers, **suite):
    settings = {"files": files, "limit": 3, "samples": 4, "max_input_tokens": 12000} | suite
    config = make_config(folder, evaluation={"suite": settings, "every": 2})
    table = make_table(folder, Script(answers=answers), config)
    return config, table


def test_figures_by_benchmark(folder, files, tmp_path):
    config, table = suite_table(folder, files, (RIGHT, WRONG, WRONG, WRONG))
    suite = Suite.of(config, table)
    assert len(suite.records) == 4
    figures = asyncio.run(suite.ask(table, BenchmarkFolder(tmp_path / "out")))
    metrics = suite_metrics(figures)
    assert metrics["evaluation/frames/pass_at_1"] == 0.25
    assert metrics["evaluation/frames/pass_at_2"] == pytest.approx(1 - (3 / 4) * (2 / 3))
    assert metrics["evaluation/frames/pass_at_4"] == 1
    assert metrics["evaluation/longbench_v2/pass_at_1"] == 0
    assert metrics["evaluation/frames/truncated/share"] == 0
    assert suite_line(figures).startswith("frames 25.0% (25.0% to 25.0%, 3 records), longbench_v2 0.0%")
    assert len({r.seed for r in read_results(tmp_path / "out" / "results.jsonl")}) == 16


def test_no_files_no_suite(folder):
    config, table = suite_table(folder, [], (RIGHT,))
    assert Suite.of(config, table) is None


def test_what_cannot_be_asked_is_told_before_a_run_starts(folder, files, monkeypatch, tmp_path):
    config, _ = suite_table(folder, files, (RIGHT,), max_input_tokens=19000)
    (fault,) = [line for line in violations(config) if line.startswith("evaluation.suite")]
    assert fault.startswith("evaluation.suite.max_input_tokens = 19000: with an answer of")
    monkeypatch.setattr("megatron_spell.train.preflight.violations", lambda config, on_cpu: [])
    config, _ = suite_table(folder, [str(tmp_path / "none.jsonl")], (RIGHT,))
    assert any(
        line.startswith(f"evaluation.suite.files: {tmp_path}/none.jsonl: cannot")
        for line in faults(config, on_cpu=False)
    )


def make_run(config, table, tmp_path, step: int) -> Run:
    """A run of which only evaluation is asked."""
    untouched = dict.fromkeys(Run.__dataclass_fields__)
    written: list[tuple[int, dict]] = []
    sinks = SimpleNamespace(write_aside=lambda step, metrics: written.append((step, metrics)), written=written)
    refresh = SimpleNamespace(while_playing=lambda work, version: asyncio.run(work))
    parts = {"refresh": refresh, "sinks": sinks, "console": Console(file=io.StringIO(), width=300), "questions": []}
    parts |= {"config": config, "table": table, "folder": RunFolder(tmp_path / "run"), "step": step}
    return Run(**(untouched | parts | {"suite": Suite.of(config, table)}))


def test_a_run_asks_its_suite_when_it_is_due_and_once(folder, files, tmp_path):
    config, table = suite_table(folder, files, (RIGHT, WRONG))
    run = make_run(config, table, tmp_path, step=0)
    run.evaluate_once("before")
    run.evaluate_if_due()
    for run.step in (1, 2):
        run.evaluate_if_due()
    run.evaluate_if_due()  # as a run does that goes on from the checkpoint of this very step
    entries = [json.loads(line) for line in (tmp_path / "run" / "suite.jsonl").read_text().splitlines()]
    assert [(e["when"], e["step"]) for e in entries] == [("before", 0), ("during", 2)]
    assert entries[1]["benchmarks"]["frames"]["pass_at"]["1"]["mean"] == 0.5
    assert [step for step, _ in run.sinks.written] == [0, 2]
    assert run.sinks.written[1][1]["evaluation/frames/pass_at_1"] == 0.5
    assert table.engine.counts.completions == 2 * 16


def test_a_suite_that_was_cut_short_goes_on(folder, files, tmp_path):
    config, table = suite_table(folder, files, (RIGHT, WRONG))
    engine = table.engine
    engine.failures = {5: EngineDied("engine 0 died")}
    run = make_run(config, table, tmp_path, step=2)
    with pytest.raises(ValueError, match="engine 0 died"):
        run.evaluate_if_due()
    assert not (tmp_path / "run" / "suite.jsonl").exists()
    kept = len((tmp_path / "run/suite/step_000002_during/outputs.jsonl").read_text().splitlines())
    engine.failures, before = {}, engine.counts.completions
    make_run(config, table, tmp_path, step=2).evaluate_if_due()
    assert kept > 0
    assert engine.counts.completions - before == 16 - kept


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(folder, files, tmp_path):
    from megatron_spell.train.suite_log import SuiteLog

    config, table = suite_table(folder, files, (RIGHT,))
    run = make_run(config, table, tmp_path, step=2)
    run.evaluate_if_due()
    run.step = 4
    run.evaluate_if_due()
    SuiteLog(run.folder).forget_after(3)
    assert [e["step"] for e in SuiteLog(run.folder).entries()] == [2]
    assert [p.name for p in (tmp_path / "run" / "suite").iterdir()] == ["step_000002_during"]
