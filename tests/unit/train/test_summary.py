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
EVALUATION_OF_OLD = {
    "when": "before",
    "step": 0,
    "overall": {"mean": 0.4, "low": 0.3, "high": 0.5, "num_questions": 50},
    "by_task": {"general_qa": {"mean": 0.4}},
    "pass_at_all": 0.7,
    "num_samples": 8,
}
EVALUATION = EVALUATION_OF_OLD | {
    "overall": {"mean": 0.4, "low": 0.3, "high": 0.5, "num_questions": 20},
    "by_length": {
        "256": {"mean": 0.6, "low": 0.5, "high": 0.7, "num_questions": 10},
        "512": {"mean": 0.2, "low": 0.1, "high": 0.3, "num_questions": 10},
    },
    "pass_at": {"1": 0.4, "2": 0.5, "4": 0.6, "8": 0.7},
    "usable_length": {"tokens": 245.0, "low": 200.0, "high": 300.0, "at_least": False},
    "usable_accuracy": 0.5,
    "num_right": [5] * 10 + [2] * 10,
    "document_tokens": [200] * 10 + [400] * 10,
    "asked": "digest",
}
AFTER = EVALUATION | {"when": "after", "step": 2, "num_right": [6] * 10 + [3] * 10}


@pytest.fixture
def metrics(tmp_path):
    second = STEP | {"verifier/rows": 8.0, "mismatch/log_prob_diff/max": 3e-5, "curriculum/document_tokens": 512.0}
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, **step}) + "\n" for i, step in enumerate((STEP, second), 1)))
    return path


def test_the_end_of_a_shorter_run_that_went_on_is_no_end(metrics):
    earlier = AFTER | {"step": 1}
    summary = summarise(metrics, [EVALUATION, earlier, AFTER])
    assert [(entry["when"], entry["step"]) for entry in summary["held_out"]] == [("before", 0), ("after", 2)]


def test_figures_are_of_all_steps(metrics):
    summary = summarise(metrics, [EVALUATION, EVALUATION | {"when": "during"}, AFTER])
    assert summary["steps"] == 2
    assert summary["usable_questions"] == 16
    assert summary["rows"] == {"questioner": 32, "responder": 128, "verifier": 8}
    assert summary["share_of_steps_with_role"] == {"questioner": 1.0, "responder": 1.0, "verifier": 0.5}
    assert summary["generated_tokens_per_second"] == pytest.approx(2400 / 20)
    assert summary["trained_tokens_per_second"] == pytest.approx(10000 / 4)
    assert summary["log_prob_diff_max"] == 3e-5
    assert summary["document_tokens"] == [256.0, 512.0]
    assert [entry["when"] for entry in summary["held_out"]] == ["before", "after"]
    assert summary["held_out"][0]["by_length"]["512"] == {"mean": 0.2, "low": 0.1, "high": 0.3, "questions": 10}
    assert summary["held_out_change"]["accuracy"]["mean"] == pytest.approx(1 / 8)
    assert summary["steps_of_signs"] == {}


def shown(summary: dict) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary_table(summary))
    return console.export_text()


def test_the_table_says_it_to_a_reader(metrics):
    text = shown(summarise(metrics, [EVALUATION, AFTER]))
    assert "questioner 100%, responder 100%, verifier 50%" in text
    assert "40.0% (95 % interval 30.0% to 50.0%; 8 samples each of 20 questions" in text
    assert "60.0% up to 256 (10), 20.0% up to 512 (10)" in text
    assert "1: 40.0%, 2: 50.0%, 4: 60.0%, 8: 70.0%" in text
    assert "245 tokens (95 % interval 200 to 300)" in text
    assert "accuracy +12.5 (+12.5 to +12.5), pass@2" in text
    assert "+12.5 up to 256, +12.5 up to 512" in text
    assert "10.0 (collect 4.0, update 2.0, publish 0.5, save 0.0)" in text


def test_a_run_without_a_step_has_a_summary_too(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    summary = summarise(tmp_path / "metrics.jsonl", [])
    assert summary["steps"] == 0
    summary_table(summary)


def test_evaluations_of_an_older_version_are_shown_without_what_they_lack(metrics):
    summary = summarise(metrics, [EVALUATION_OF_OLD, AFTER])
    assert summary["held_out_change"] is None
    assert "40.0% (95 % interval 30.0% to 50.0%; 8 samples each of 50 questions" in shown(summary)


def test_signs_of_collapse_are_counted(metrics):
    assert "none" in shown(summarise(metrics, []))
    lines = [json.loads(line) | {"watch/always_yes": 1.0, "watch/always_no": 0.0} for line in metrics.open()]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = summarise(metrics, [])
    assert summary["steps_of_signs"] == {"always_yes": 2}
    assert "always_yes in 2 steps (docs/debugging.md)" in shown(summary)
