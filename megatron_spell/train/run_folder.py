"""Where a run keeps what it makes. The layout is documented in docs/running.md and stays as it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_spell.observe.files import write_whole


@dataclass(frozen=True, slots=True)
class RunFolder:
    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations.jsonl"

    @property
    def suite(self) -> Path:
        return self.root / "suite.jsonl"

    @property
    def trace(self) -> Path:
        return self.root / "trace.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    def rounds(self, step: int) -> Path:
        return self.root / "rounds" / f"step_{step:06d}.jsonl"

    def make(self) -> None:
        for folder in (self.root, self.checkpoints, self.root / "rounds"):
            folder.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` in one move: a reader, or a crash, finds the old file or the new one whole."""
    write_whole(path, [json.dumps(value, indent=1, allow_nan=False)])
