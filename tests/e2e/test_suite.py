"""A run that trains asks a suite of benchmark files through its own engines: before, during and after."""

import json

import pytest

from tests.e2e.quickstart import cli, overrides, train_command
from tests.unit.evaluation.made_records import FRAMES, LONGBENCH_V2

pytestmark = pytest.mark.slow


def test_a_run_logs_its_suite(store, tmp_path):
    files = {"frames": [FRAMES | {"ID": str(n)} for n in range(3)], "v2": [LONGBENCH_V2]}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {
        "evaluation.every": 1,
        "evaluation.suite.files": f"[{tmp_path}/frames.jsonl,{tmp_path}/v2.jsonl]",
        "evaluation.suite.limit": 2,
        "evaluation.suite.samples": 2,
        "evaluation.suite.max_input_tokens": 500,
    }
    run_folder = tmp_path / "run"
    settings = overrides(store, run_folder, steps=1, **{"policy.mesh.tp": 1}, **suite)
    said = cli(train_command(settings), expect=0).stdout
    entries = [json.loads(line) for line in (run_folder / "suite.jsonl").read_text().splitlines()]
    assert [(e["when"], e["step"]) for e in entries] == [("before", 0), ("during", 1), ("after", 1)]
    for entry in entries:
        assert {name: f["num_questions"] for name, f in entry["benchmarks"].items()} == {"frames": 2, "longbench_v2": 1}
        assert f"suite {entry['when']}: frames " in said
    for when in ("000000_before", "000001_during", "000001_after"):
        outputs = (run_folder / "suite" / f"step_{when}" / "outputs.jsonl").read_text().splitlines()
        assert len({json.loads(line)["seed"] for line in outputs}) == 6
