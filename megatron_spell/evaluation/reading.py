"""Reading benchmark files, each with all that is wrong with it; nothing is dropped in silence."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_spell.evaluation.formats import read_file
from megatron_spell.evaluation.record import BadRecord, BenchmarkError, Record
from megatron_spell.types.numbers import parse_number
from megatron_spell.types.play import TaskName

_DOCUMENTS_IN = {
    "frames": 'the page texts (`wiki_items`: [{"title", "text"}, ...], as in Tongyi-Zhiwen/frames)',
    "docmath": "`paragraphs`",
}


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that `num_records` readable records lack; `first` is the origin of one."""

    what: str
    num_records: int
    first: str


@dataclass(frozen=True, slots=True)
class FileCheck:
    """`benchmarks` counts the readable records; `bad_records` are those that cannot be read."""

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


def read_benchmark(path: Path, name: str | None = None) -> list[Record]:
    """Every record of `path`, in its order; the benchmark is known from the fields, or told by `name`.

    Raises BenchmarkError when any record cannot be read. One that only lacks something (`gaps`) is read.
    """
    records, bad = _read(path, name)
    if bad:
        raise BenchmarkError(bad)
    return records


def read_benchmarks(paths: Iterable[Path | tuple[str, Path]]) -> list[Record]:
    """The records of several files, each a path or (name, path).

    Raises BenchmarkError for all that is wrong in any of them, a record that two files hold included.
    """
    every: list[Record] = []
    bad: list[BadRecord] = []
    for each in paths:
        name, path = (None, each) if isinstance(each, Path) else each
        records, found = _read(path, name)
        every += records
        bad += found
    bad += repeated(every)
    if bad:
        raise BenchmarkError(list(dict.fromkeys(bad)))
    return every


def check(path: Path, name: str | None = None) -> FileCheck:
    """What `path` holds, and what is missing in any of its records."""
    records, bad = _read(path, name)
    return FileCheck(path, dict(Counter(r.benchmark for r in records)), tuple(bad), tuple(gaps(records)))


def gaps(records: Sequence[Record]) -> list[Gap]:
    """What readable records lack: the documents, or a gold that the rule can score."""
    lacks: dict[str, list[str]] = {}
    for record in records:
        for what in _lacks(record):
            lacks.setdefault(what, []).append(record.origin)
    return [Gap(what, len(origins), origins[0]) for what, origins in lacks.items()]


def repeated(records: Iterable[Record]) -> list[BadRecord]:
    """The records whose id stood before in the same benchmark."""
    first: dict[tuple[str, str], str] = {}
    found = []
    for record in records:
        key = (record.benchmark, record.record_id)
        if key in first:
            found.append(BadRecord(record.origin, f"{_id_of(record)} is that of {first[key]} already; leave one out"))
        first.setdefault(key, record.origin)
    return found


def _read(path: Path, name: str | None) -> tuple[list[Record], list[BadRecord]]:
    records, bad = read_file(path, name)
    return records, [*bad, *repeated(records)]


def _id_of(record: Record) -> str:
    return f"the id {record.record_id!r} in {record.benchmark}"


def _lacks(record: Record) -> Iterable[str]:
    if not record.context.strip():
        needed = _DOCUMENTS_IN.get(record.benchmark, "the documents")
        yield f"have no documents; without {needed} only the baseline without documents can be asked"
    if record.task == TaskName.MATH_QA and parse_number(record.golds[0]) is None:
        yield "have a ground_truth that is no number; only the judge can pass an answer"
