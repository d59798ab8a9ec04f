"""What the suite of benchmark files gave at which step of a run, and the samples behind it."""

import json
import shutil
from dataclasses import asdict, dataclass

from megatron_spell.evaluation.benchmark_folder import BenchmarkFolder
from megatron_spell.evaluation.summary import Figures
from megatron_spell.observe.files import json_line, write_whole
from megatron_spell.train.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class SuiteLog:
    """`suite.jsonl` of a run folder, and `suite/step_000010_during/` for each asking."""

    folder: RunFolder

    def entries(self) -> list[dict]:
        path = self.folder.suite
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def has(self, when: str, step: int) -> bool:
        """A resumed run has its "before" from its first start."""
        return any(e["when"] == when and (e["step"] == step or when == "before") for e in self.entries())

    def samples(self, when: str, step: int) -> BenchmarkFolder:
        return BenchmarkFolder(self.folder.root / "suite" / f"step_{step:06d}_{when}")

    def add(self, when: str, step: int, figures: dict[str, Figures]) -> None:
        entry = {"when": when, "step": step, "benchmarks": {name: asdict(each) for name, each in figures.items()}}
        write_whole(self.folder.suite, [json_line(e) for e in [*self.entries(), entry]])

    def forget_after(self, step: int) -> None:
        """Steps that a resumed run takes again are evaluated again: their weights may be others."""
        entries = self.entries()
        if any(e["step"] > step for e in entries):
            write_whole(self.folder.suite, [json_line(e) for e in entries if e["step"] <= step])
        for samples in sorted((self.folder.root / "suite").glob("step_*_*")):
            if int(samples.name.split("_")[1]) > step:
                shutil.rmtree(samples)
