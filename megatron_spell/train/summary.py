"""What a run came to: read back from its metrics, so that a resumed run is summed up whole."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from megatron_spell.evaluation.change import change_between
from megatron_spell.evaluation.figures import UsableLength, usable_text
from megatron_spell.types.play import Role

STAGES = ("collect", "update", "publish", "save")


def summarise(metrics_path: Path, evaluations: Sequence[dict]) -> dict:
    """The run's figures as plain values; means are over steps, rates over the time of whole steps."""
    steps = [json.loads(line) for line in metrics_path.read_text(encoding="utf-8").splitlines()]
    total_s = sum(_column(steps, "time/step"))
    return {
        "steps": len(steps),
        "usable_questions": int(sum(_column(steps, "rounds/outcome/usable"))),
        "rounds": int(sum(_column(steps, "rounds/count"))),
        "rows": {role.value: int(sum(_column(steps, f"{role}/rows"))) for role in Role},
        "share_of_steps_with_role": {role.value: _share_above_zero(steps, f"{role}/rows") for role in Role},
        "seconds": {"step_total": total_s, **{stage: sum(_column(steps, f"time/{stage}")) for stage in STAGES}},
        "generated_tokens_per_second": _generated(steps) / max(total_s, 1e-9),
        "trained_tokens_per_second": _trained(steps) / max(sum(_column(steps, "time/update")), 1e-9),
        "bridge": {
            "bytes_per_refresh": _last(steps, "bridge/bytes"),
            "seconds_per_refresh": _mean(steps, "bridge/seconds"),
        },
        "log_prob_diff_max": max(_column(steps, "mismatch/log_prob_diff/max"), default=None),
        "peak_memory_gib": max(_column(steps, "memory/peak_gib"), default=None),
        "document_tokens": [_first(steps, "curriculum/document_tokens"), _last(steps, "curriculum/document_tokens")],
        "steps_of_signs": {name.removeprefix("watch/"): count for name, count in _signs(steps).items()},
        "held_out": [_evaluation(entry) for entry in _before_and_after(evaluations)],
        "held_out_change": _change(evaluations),
    }


def _before_and_after(evaluations: Sequence[dict]) -> list[dict]:
    """Without the "after" of fewer steps, which a run that was given more of them holds too."""
    last = max((entry["step"] for entry in evaluations if entry["when"] == "after"), default=None)
    return [e for e in evaluations if e["when"] == "before" or (e["when"] == "after" and e["step"] == last)]


def summary_table(summary: dict) -> Table:
    """The summary for a reader."""
    table = Table(title="what happened", show_header=False, title_justify="left")
    for label, text in _lines(summary):
        table.add_row(label, text)
    return table


def _lines(summary: dict) -> list[tuple[str, str]]:
    seconds, bridge = summary["seconds"], summary["bridge"]
    num_steps = max(summary["steps"], 1)
    stages = ", ".join(f"{stage} {seconds[stage] / num_steps:.1f}" for stage in STAGES)
    lines = [
        ("optimizer steps", str(summary["steps"])),
        ("rounds played", f"{summary['rounds']}, of which usable {summary['usable_questions']}"),
        ("rows trained", ", ".join(f"{role} {count}" for role, count in summary["rows"].items())),
        (
            "steps that trained each role",
            ", ".join(f"{role} {share:.0%}" for role, share in summary["share_of_steps_with_role"].items()),
        ),
        ("seconds a step", f"{seconds['step_total'] / num_steps:.1f} ({stages})"),
        ("generated tokens a second", f"{summary['generated_tokens_per_second']:,.0f} over whole steps"),
        ("trained tokens a second", f"{summary['trained_tokens_per_second']:,.0f} while updating (prompts included)"),
        (
            "weights to the engine",
            f"{bridge['bytes_per_refresh'] / 2**20:.1f} MiB in {bridge['seconds_per_refresh']:.2f} s",
        ),
        ("engine against policy", f"largest log-prob difference {_shown(summary['log_prob_diff_max'], '.1e')}"),
        ("peak memory, all processes", f"{_shown(summary['peak_memory_gib'], '.1f')} GiB (sum of resident sizes)"),
        ("document length", " to ".join(f"{tokens:.0f}" for tokens in summary["document_tokens"]) + " tokens"),
    ]
    signs = ", ".join(f"{sign} in {count} steps" for sign, count in summary["steps_of_signs"].items())
    lines.append(("signs of collapse", f"{signs} (docs/debugging.md)" if signs else "none"))
    for entry in summary["held_out"]:
        lines += _held_out_lines(entry)
    return lines + (_change_lines(summary["held_out_change"]) if summary["held_out_change"] else [])


def _held_out_lines(entry: dict) -> list[tuple[str, str]]:
    lines = [(f"held-out accuracy {entry['when']}", _accuracy_text(entry))]
    if "by_length" not in entry:  # of an older version
        return lines
    by_length = (f"{of['mean']:.1%} up to {tokens} ({of['questions']})" for tokens, of in entry["by_length"].items())
    usable = entry["usable_length"]
    interval = f" (95 % interval {usable['low']:.0f} to {usable['high']:.0f})" if usable else ""
    return [
        *lines,
        ("  by document tokens (questions)", ", ".join(by_length)),
        ("  pass@k", ", ".join(f"{k}: {share:.1%}" for k, share in entry["pass_at"].items())),
        (
            f"  longest length with {entry['usable_accuracy']:.0%}",
            usable_text(UsableLength(**usable) if usable else None) + interval,
        ),
    ]


def _change_lines(change: dict) -> list[tuple[str, str]]:
    """Of the same questions, in points of a hundred."""
    shares = {"accuracy": change["accuracy"], **{f"pass@{k}": of for k, of in change["pass_at"].items() if k != "1"}}
    texts = [
        f"{name} {of['mean'] * 100:+.1f} ({of['low'] * 100:+.1f} to {of['high'] * 100:+.1f})"
        for name, of in shares.items()
    ]
    by_length = [f"{of['mean'] * 100:+.1f} up to {tokens}" for tokens, of in change["by_length"].items()]
    lines = [
        ("held-out change, points (95 %)", ", ".join(texts)),
        ("  by document tokens", ", ".join(by_length)),
    ]
    if (usable := change["usable_length"]) is not None:
        text = f"{usable['mean']:+.0f} tokens ({usable['low']:+.0f} to {usable['high']:+.0f})"
        lines.append(("  longest usable length", text))
    return lines


def _shown(figure: float | None, form: str) -> str:
    """A run without a step has no largest or highest of anything."""
    return "-" if figure is None else format(figure, form)


def _accuracy_text(entry: dict) -> str:
    by_task = ", ".join(f"{task} {mean:.1%}" for task, mean in entry["by_task"].items())
    interval = f"95 % interval {entry['low']:.1%} to {entry['high']:.1%}"
    asked = f"{entry['samples']} samples each of {entry['questions']} questions"
    return f"{entry['mean']:.1%} ({interval}; {asked}; {by_task})"


def _evaluation(entry: dict) -> dict:
    overall = entry["overall"]
    figures = {
        "when": entry["when"],
        "step": entry["step"],
        "mean": overall["mean"],
        "low": overall["low"],
        "high": overall["high"],
        "questions": overall["num_questions"],
        "samples": entry["num_samples"],
        "pass_at_all": entry["pass_at_all"],
        "by_task": {task: value["mean"] for task, value in entry["by_task"].items()},
    }
    if "by_length" not in entry:  # of an older version
        return figures
    by_length = {
        tokens: {"mean": of["mean"], "low": of["low"], "high": of["high"], "questions": of["num_questions"]}
        for tokens, of in entry["by_length"].items()
    }
    kept = {name: entry[name] for name in ("pass_at", "usable_length", "usable_accuracy")}
    return {**figures, "by_length": by_length, **kept}


def _change(evaluations: Sequence[dict]) -> dict | None:
    """From the first evaluation before training to the last after it."""
    before = next((entry for entry in evaluations if entry["when"] == "before"), None)
    after = next((entry for entry in reversed(evaluations) if entry["when"] == "after"), None)
    return change_between(before, after) if before and after else None


def _signs(steps: Sequence[dict]) -> dict[str, int]:
    """In how many steps each sign of collapse was told; those that never were are left out."""
    names = sorted({name for step in steps for name in step if name.startswith("watch/")})
    counts = {name: int(sum(_column(steps, name))) for name in names}
    return {name: count for name, count in counts.items() if count}


def _generated(steps: Sequence[dict]) -> float:
    names = [(f"{role}/output_tokens/mean", f"{role}/outputs") for role in Role]
    return sum((step.get(mean) or 0) * (step.get(count) or 0) for step in steps for mean, count in names)


def _trained(steps: Sequence[dict]) -> float:
    return sum(_column(steps, "packing/bin_tokens"))


def _column(steps: Sequence[dict], name: str) -> list[float]:
    return [step[name] for step in steps if step.get(name) is not None]


def _share_above_zero(steps: Sequence[dict], name: str) -> float:
    return sum(value > 0 for value in _column(steps, name)) / max(len(steps), 1)


def _mean(steps: Sequence[dict], name: str) -> float:
    return float(np.mean(_column(steps, name) or [0.0]))


def _first(steps: Sequence[dict], name: str) -> float:
    return next(iter(_column(steps, name)), 0.0)


def _last(steps: Sequence[dict], name: str) -> float:
    return next(reversed(_column(steps, name)), 0.0)
