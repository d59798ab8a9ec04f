"""Folders of finished runs, made by hand."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "examples/quickstart"


def evaluation(when: str, step: int, num_right: list[int], asked: str | None = "these", **more) -> dict:
    """A line of evaluations.jsonl: 8 samples of every question."""
    share = sum(num_right) / 8 / len(num_right)
    found = {"mean": share, "low": 0.0, "high": 1.0, "num_questions": len(num_right)}
    entry = {"when": when, "step": step, "overall": found, "by_task": {"general_qa": found}, "num_samples": 8}
    entry["pass_at_all"] = sum(right > 0 for right in num_right) / len(num_right)
    if asked is not None:
        entry |= {"asked": asked, "num_right": num_right, "by_length": {"256": found}}
        entry["usable_length"] = {"tokens": 300.0, "low": 200.0, "high": 400.0, "at_least": False}
    return entry | more


def write_run(folder: Path, evaluations: list[dict], seconds: tuple = (90.0,)) -> None:
    """A finished run's folder, as `megatron-spell train` and the runner leave it."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = [{"step": i, "responder/solve_rate/mean": 0.5, "curriculum/document_tokens": 256.0 * i} for i in (1, 2)]
    attempts = [{"began": float(i), "seconds": s} for i, s in enumerate(seconds)]
    files = {
        "evaluations.jsonl": evaluations,
        "metrics.jsonl": metrics,
        "attempts.jsonl": attempts,
        "summary.json": [{"steps_of_signs": {"always_yes": 3, "entropy_low": 0}}],
    }
    for name, lines in files.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
