import io
import json

import pytest
from rich.console import Console

from megatron_spell.train.summary import summarise, summary_table

STEP = {
    "time/step": 10.0,
    "time/collect": 4.0,
    "time/update": 2.0,
    "time/publish": 0.5,
    "rounds/count": 30.0,
    "rounds/outcome/usable": 8.0,
    "questioner/rows": 16.0,
    "responder/rows": 64.0,
    "verifier/rows": 0.0,
    "responder/outputs": 100.0,
    "responder/output_tokens/mean": 12.0,
    "packing/bin_tokens": 5000.0,
    "bridge/bytes": 4e6,
    "bridge/seconds": 0.2,
    "mismatch/log_prob_diff/max": 1e-5,
    "memory/peak_gib": 3.0,
    "curriculum/document_tokens": 256.0,
}
EVALUATION = {
    "when": "before",
    "step": 0,
    "overall": {"mean": 0.4, "low": 0.3, "high": 0.5, "num_questions": 50},
    "by_task": {"general_qa": {"mean": 0.4}},
    "pass_at_all": 0.7,
    "num_samples": 8,
}


@pytest.fixture
def metrics(tmp_path):
    second = STEP | {"verifier/rows": 8.0, "mismatch/log_prob_diff/max": 3e-5, "curriculum/document_tokens": 512.0}
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, **step}) + "\n" for i, step in enumerate((STEP, second), 1)))
    return path


def test_figures_are_of_all_steps(metrics):
    summary = summarise(metrics, [EVALUATION, EVALUATION | {"when": "during"}])
    assert summary["steps"] == 2
    assert summary["usable_questions"] == 16
    assert summary["rows"] == {"questioner": 32, "responder": 128, "verifier": 8}
    assert summary["share_of_steps_with_role"] == {"questioner": 1.0, "responder": 1.0, "verifier": 0.5}
    assert summary["generated_tokens_per_second"] == pytest.approx(2400 / 8)
    assert summary["trained_tokens_per_second"] == pytest.approx(10000 / 4)
    assert summary["log_prob_diff_max"] == 3e-5
    assert summary["document_tokens"] == [256.0, 512.0]
    assert [entry["when"] for entry in summary["held_out"]] == ["before"]


def test_the_table_says_it_to_a_reader(metrics):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(summary_table(summarise(metrics, [EVALUATION])))
    text = console.export_text()
    assert "questioner 100%, responder 100%, verifier 50%" in text
    assert "40.0% (95 % interval 30.0% to 50.0%; 8 samples each of 50 questions" in text
    assert "10.0 (collect 4.0, update 2.0, publish 0.5, save 0.0)" in text


def test_a_run_without_a_step_has_a_summary_too(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    summary = summarise(tmp_path / "metrics.jsonl", [])
    assert summary["steps"] == 0
    summary_table(summary)
