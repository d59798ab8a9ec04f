"""Reading benchmark files, each with all that is wrong with it; nothing is dropped in silence."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_spell.evaluation.formats import read_file
from megatron_spell.evaluation.record import BENCHMARKS, BadRecord, BenchmarkError, Record
from megatron_spell.types.numbers import parse_number
from megatron_spell.types.play import TaskName

_DOCUMENTS_IN = {
    "frames": 'the page texts (`wiki_items`: [{"title", "text"}, ...], as in Tongyi-Zhiwen/frames)',
    "docmath": "`paragraphs`",
    "musique": "`paragraphs` or `context`",
}


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that `num_records` readable records lack; `first` is the origin of one."""

    what: str
    num_records: int
    first: str


@dataclass(frozen=True, slots=True)
class FileCheck:
    """`benchmarks` counts the readable records of each; `bad_records` are those that cannot be read."""

    path: Path
    benchmarks: dict[str, int]
    bad_records: tuple[BadRecord, ...] = ()
    gaps: tuple[Gap, ...] = ()

    @property
    def num_records(self) -> int:
        return sum(self.benchmarks.values())

    @property
    def complete(self) -> bool:
        return bool(self.num_records) and not self.bad_records and not self.gaps


def told(text: str) -> tuple[str | None, Path]:
    """(name, path) of a file as it is given: FILE, or NAME=FILE where the fields do not tell the benchmark."""
    name, found, path = text.partition("=")
    return (name, Path(path)) if found and name in BENCHMARKS else (None, Path(text))


def read_benchmark(path: Path, name: str | None = None) -> list[Record]:
    """Every record of `path`, in its order; the benchmark is known from the fields, or told by `name`.

    Raises BenchmarkError when any record cannot be read. One that only lacks something (`gaps`) is read.
    """
    return read_benchmarks([(name, path)])


def read_benchmarks(files: Iterable[tuple[str | None, Path]]) -> list[Record]:
    """The records of several files, each told as (name or None, path).

    Raises BenchmarkError for all that is wrong in any of them, a record that two files hold included.
    """
    every: list[Record] = []
    bad: list[BadRecord] = []
    first: dict[tuple[str, str], str] = {}
    for name, path in files:
        records, found = read_file(path, name)
        every += records
        bad += [*found, *_repeated(records, first)]
    if bad:
        raise BenchmarkError(bad)
    return every


def check(path: Path, name: str | None = None) -> FileCheck:
    """What `path` holds, and what is missing in any of its records."""
    return check_all([(name, path)])[0]


def check_all(files: Iterable[tuple[str | None, Path]]) -> list[FileCheck]:
    """The same for several files; a record that a file before held already is a bad one."""
    checks = []
    first: dict[tuple[str, str], str] = {}
    for name, path in files:
        records, bad = read_file(path, name)
        counts = dict(Counter(record.benchmark for record in records))
        checks.append(FileCheck(path, counts, (*bad, *_repeated(records, first)), tuple(gaps(records))))
    return checks


def gaps(records: Sequence[Record]) -> list[Gap]:
    """What readable records lack: the documents, or a gold that the rule can score."""
    lacking: dict[str, list[str]] = {}
    for record in records:
        for what in _lacks(record):
            lacking.setdefault(what, []).append(record.origin)
    return [Gap(what, len(origins), origins[0]) for what, origins in lacking.items()]


def _lacks(record: Record) -> Iterable[str]:
    if not record.context.strip():
        needed = _DOCUMENTS_IN.get(record.benchmark, "`context`")
        yield f"documents; without {needed} only the baseline without documents can be asked"
    if record.task == TaskName.MATH_QA and parse_number(record.golds[0]) is None:
        yield "a number in `ground_truth`; without one only the judge can pass an answer"


def _repeated(records: Iterable[Record], first: dict[tuple[str, str], str]) -> Iterable[BadRecord]:
    """Those whose id is in `first` already, which gets the origins of the others."""
    for record in records:
        key = (record.benchmark, record.record_id)
        if key in first:
            reason = f"the id {record.record_id!r} is that of {first[key]} already; leave one of the two out"
            yield BadRecord(record.origin, reason)
        first.setdefault(key, record.origin)
