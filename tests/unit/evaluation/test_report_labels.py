"""Evaluations that are known by the same label: put together, but no sample ever counts twice."""

import json
from pathlib import Path

from megatron_spell.evaluation.benchmark_folder import BenchmarkFolder
from megatron_spell.evaluation.report import write_report
from tests.unit.evaluation.made_results import results


def evaluated(root: Path, lines: list, label="step_70", limit=16_384) -> BenchmarkFolder:
    folder = BenchmarkFolder(root)
    folder.begin({"max_input_tokens": limit}, {}, label)
    folder.results.write_text("".join(line.line() + "\n" for line in lines), encoding="utf-8")
    return folder


def labels(folder: BenchmarkFolder, *beside: BenchmarkFolder) -> list[str]:
    write_report(folder, [each.root for each in beside], None)
    return [each["label"] for each in json.loads((folder.root / "summary.json").read_text())]


def test_a_baseline_without_documents_joins_its_evaluation(tmp_path):
    told = evaluated(tmp_path / "told", results("docmath", ["1100"]))
    blind = evaluated(tmp_path / "blind", results("docmath", ["1000"], documents=False))
    assert labels(told, blind) == ["step_70"]
    (figures,) = json.loads((told.root / "summary.json").read_text())
    assert figures["summary"]["gain"]["docmath"]["mean"] == 0.25


def test_two_runs_whose_models_have_the_same_name_stay_two(tmp_path):
    first = evaluated(tmp_path / "a", results("docmath", ["1100"]))
    second = evaluated(tmp_path / "b", results("docmath", ["1111"]))
    assert labels(first, second) == ["step_70", f"step_70 in {second.root}"]
    one, other = json.loads((first.root / "summary.json").read_text())
    scores = [each["summary"]["documents"]["benchmarks"]["docmath"]["pass_at"]["1"]["mean"] for each in (one, other)]
    assert scores == [0.5, 1.0]


def test_another_input_limit_is_another_row(tmp_path):
    first = evaluated(tmp_path / "a", results("docmath", ["1100"]))
    longer = evaluated(tmp_path / "b", results("docmath", ["1111"]), limit=100_000)
    assert labels(first, longer) == ["step_70", "step_70"]
