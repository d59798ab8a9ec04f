"""The quickstart, cut down to seconds: shared by the end-to-end tests."""

import json
import subprocess
import sys
from pathlib import Path

from megatron_spell.config.load import load_config
from megatron_spell.config.schema import RunConfig

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/quickstart"
LIMIT_S = 400

# Few questions and short waits; everything else is the quickstart's own.
SMALL = {
    "play.questions_per_step": 4,
    "play.min_questions": 1,
    "play.max_draws_per_step": 60,
    "play.max_rounds_in_flight": 12,
    "checkpoint.every": 1,
    "checkpoint.keep": 9,
    "evaluation.questions": "null",
    "policy.optimizer.warmup_steps": 0,
    "rollout.kv_cache_gib": 0.25,
    "rollout.max_num_seqs": 64,
}


def build_store(folder: Path) -> Path:
    store = folder / "store.h5"
    command = ["data", "build", "python-topics", "--tokenizer", str(EXAMPLE / "base_model"), "--out", str(store)]
    cli(command, expect=0)
    return store


def cli(arguments: list[str], expect: int | None = None) -> subprocess.CompletedProcess:
    """Run `megatron-spell` as a user would, from the repository's root."""
    command = [sys.executable, "-m", "megatron_spell.cli.main", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert expect is None or done.returncode == expect, done.stdout + done.stderr
    return done


def overrides(store: Path, run_folder: Path, **more) -> dict[str, object]:
    return {**SMALL, "data.store": store, "run_folder": run_folder, **more}


def as_arguments(settings: dict[str, object]) -> list[str]:
    return [word for field, value in settings.items() for word in ("--set", f"{field}={value}")]


def train_command(settings: dict[str, object], *flags: str) -> list[str]:
    return ["train", str(EXAMPLE / "run.yaml"), *as_arguments(settings), *flags]


def config_of(settings: dict[str, object]) -> RunConfig:
    return load_config(EXAMPLE / "run.yaml", [f"{field}={value}" for field, value in settings.items()])


def begin(settings: dict[str, object], *flags: str) -> subprocess.Popen:
    """A run under way, to be struck; what it says on standard error can be read."""
    command = [sys.executable, "-m", "megatron_spell.cli.main", *train_command(settings, *flags)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def metrics(run_folder: Path) -> list[dict]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def rounds(run_folder: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (run_folder / f"rounds/step_{step:06d}.jsonl").read_text().splitlines()]
