"""Benchmark questions: one form for the records of all six benchmarks (read by reading.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_spell.types.play import TaskName

TASKS = {
    "docmath": TaskName.MATH_QA,
    "frames": TaskName.GENERAL_QA,
    "hotpotqa": TaskName.GENERAL_QA,
    "2wikimqa": TaskName.GENERAL_QA,
    "musique": TaskName.GENERAL_QA,
    "longbench_v2": TaskName.MULTIPLE_CHOICE,
}
BENCHMARKS = tuple(TASKS)
# Of the sets that the paper evaluates on: DocMath-Eval testmini, FRAMES, LongBench and LongBench-v2.
PROTOCOL_SIZES = {"docmath": 800, "frames": 824, "hotpotqa": 200, "2wikimqa": 200, "musique": 200, "longbench_v2": 503}
KIND_SEPARATOR = " | "
_SHOWN_FAULTS = 5


@dataclass(frozen=True, slots=True)
class Record:
    """One question of a benchmark, as the protocol asks it.

    `record_id` is unique within the benchmark and stays when lines are added or reordered. `question` carries the
    choices where there are any; `context` is all documents as one text, "" where the file has none. The protocol scores
    against the first of `golds`; further ones are the file's aliases. `kind` names the classes that results are broken
    down by, with KIND_SEPARATOR between them where there are several ("hard | short"); "" where the file names none.
    `origin` is "FILE:LINE"; a parquet file has the row, counted from 1, in place of the line.
    """

    benchmark: str
    record_id: str
    task: TaskName
    question: str
    context: str
    golds: tuple[str, ...]
    kind: str
    origin: str

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.kind.split(KIND_SEPARATOR)) if self.kind else ()


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A line that is no record of the benchmark."""

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


class BenchmarkError(ValueError):
    """A file cannot be evaluated on; `bad_records` are all that are at fault, and `lines` the first of them."""

    def __init__(self, bad_records: Sequence[BadRecord]) -> None:
        self.bad_records = tuple(bad_records)
        shown = [str(bad) for bad in self.bad_records[:_SHOWN_FAULTS]]
        hidden = len(self.bad_records) - len(shown)
        self.lines = (*shown, f"{hidden} more records are bad") if hidden else tuple(shown)
        super().__init__("\n".join(self.lines))
