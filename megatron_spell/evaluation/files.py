"""Rows of benchmark files, each with the line it begins in. What cannot be read is told, and the rest goes on."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_spell.evaluation.record import BadRecord

_SPACE = " \t\r\n"
_ROWS_AT_ONCE = 64  # of a parquet file; records may be megabytes
KNOWN = ".jsonl, .json, .parquet or .tsv, the first two also as .gz"


@dataclass(frozen=True, slots=True)
class Row:
    fields: dict[str, Any]
    origin: str


def read_rows(path: Path) -> Iterator[Row | BadRecord]:
    """The rows of `path` in their order; every line that is none as a BadRecord, and so is a file that cannot be read.

    A .json file is an array of objects, or holds one object a line.
    """
    reader = _READERS.get(_suffix(path))
    if reader is None:
        yield BadRecord(str(path), f"has the unknown suffix {path.suffix!r}; give {KNOWN}")
        return
    try:
        yield from reader(path)
    except (OSError, EOFError) as error:  # gzip raises both for a file that is cut off
        reason = getattr(error, "strerror", None) or error
        yield BadRecord(str(path), f"cannot be read: {reason}; give a whole file of {KNOWN}")


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _json_lines(path: Path) -> Iterator[Row | BadRecord]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_line(line, f"{path}:{number}")


def _json_line(line: bytes, origin: str) -> Row | BadRecord:
    try:
        return _row(json.loads(line.decode("utf-8-sig")), origin)
    except UnicodeDecodeError:
        return BadRecord(origin, "is not UTF-8; convert the file")
    except (ValueError, RecursionError) as error:
        return BadRecord(origin, f"is not JSON ({error}); write one object a line")


def _row(found: Any, origin: str) -> Row | BadRecord:
    if isinstance(found, dict):
        return Row(found, origin)
    return BadRecord(origin, f"is {_shown(found)}; a record is an object with named fields")


def _json(path: Path) -> Iterator[Row | BadRecord]:
    with _opened(path) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        yield BadRecord(f"{path}:{line}", "is not UTF-8; convert the file")
        return
    place = _skip(text, 0)
    if text.startswith("[", place):
        yield from _array(path, text, _skip(text, place + 1))
    else:
        yield from _json_lines(path)


def _array(path: Path, text: str, place: int) -> Iterator[Row | BadRecord]:
    decoder, line, counted = json.JSONDecoder(), 1, 0
    while not text.startswith("]", place):
        line, counted = line + text.count("\n", counted, place), place
        origin = f"{path}:{line}"
        try:
            found, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            yield BadRecord(
                origin, f"is not JSON from here on ({getattr(error, 'msg', error)}); nothing behind is read"
            )
            return
        yield _row(found, origin)
        place = _skip(text, place)
        if not text.startswith(("]", ","), place):
            yield BadRecord(origin, "is not followed by a comma or the end of the array; nothing behind is read")
            return
        place = _skip(text, place + 1) if text.startswith(",", place) else place


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place


def _tsv(path: Path) -> Iterator[Row | BadRecord]:
    with _opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        lines = csv.DictReader(text, delimiter="\t")
        try:
            for fields in lines:
                origin = f"{path}:{lines.line_num}"
                if None in fields or None in fields.values():
                    yield BadRecord(origin, f"has not the {len(lines.fieldnames or ())} fields of the first line")
                else:
                    yield Row(dict(fields), origin)
        except (UnicodeDecodeError, csv.Error) as error:
            yield BadRecord(f"{path}:{lines.line_num + 1}", f"cannot be read ({error}); nothing behind is read")


def _parquet(path: Path) -> Iterator[Row | BadRecord]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        number = 0
        for batch in ParquetFile(path).iter_batches(batch_size=_ROWS_AT_ONCE):
            for fields in batch.to_pylist():
                number += 1
                yield Row(fields, f"{path}:{number}")
    except (ArrowException, OSError) as error:
        yield BadRecord(str(path), f"is not readable as parquet: {' '.join(str(error).split())[:200]}")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


_READERS: dict[str, Callable[[Path], Iterator[Row | BadRecord]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json,
    ".json.gz": _json,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
