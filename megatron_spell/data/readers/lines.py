"""JSON: one object a line, plain or gzip, and files that are one array of objects."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from megatron_spell.data.documents import Fault, Unit
from megatron_spell.data.errors import SourceError
from megatron_spell.data.readers.records import unit_of
from megatron_spell.data.readers.slices import (
    SLICE_BYTES,
    ReadOptions,
    Slice,
    size_and_time,
    unreadable,
    whole_file,
)

Place = tuple[Any, str, int]  # a record or a Fault, where it stands, its number
_CHUNK = 2**20


def cut_lines(kind: str, path: Path, name: str, slice_bytes: int = SLICE_BYTES) -> Iterator[Slice]:
    """Stretches of whole lines, of `slice_bytes` and what is left of the last line. Raises SourceError."""
    size, modified_ns = size_and_time(path)
    whole = Slice(kind, str(path), name, num_bytes=size, modified_ns=modified_ns)
    start, first = 0, 1
    try:
        with path.open("rb") as file:
            while size - start > slice_bytes:
                num_lines = _count_newlines(file, slice_bytes)
                num_lines += file.readline().endswith(b"\n")
                stop = file.tell()
                yield replace(whole, start=start, stop=stop, first=first)
                start, first = stop, first + num_lines
    except OSError as error:
        raise SourceError(unreadable(path, error)) from None
    if start < size or size == 0:
        yield replace(whole, start=start, stop=size, first=first)


def _count_newlines(file: IO[bytes], num_bytes: int) -> int:
    num = 0
    while num_bytes > 0 and (chunk := file.read(min(_CHUNK, num_bytes))):
        num += chunk.count(b"\n")
        num_bytes -= len(chunk)
    return num


def cut_json(kind: str, path: Path, name: str) -> Iterator[Slice]:
    """A plain .json file is one slice: it may be an array."""
    return whole_file(kind, path, name)


def read_json(piece: Slice, options: ReadOptions) -> Iterator[Unit | Fault]:
    """The units of a slice's records, faults in their place."""
    for record, where, number in json_records(piece):
        yield record if isinstance(record, Fault) else unit_of(record, where, number, piece, options)


def json_records(piece: Slice) -> Iterator[Place]:
    """Every record of a slice of .jsonl, .json, .jsonl.gz or .json.gz, streamed unless the file is one array."""
    try:
        with _opened(piece) as file:
            if piece.kind in (".json", ".json.gz") and _first_character(file) == b"[":
                yield from _array(file.read(), piece)
            elif piece.kind == ".json":
                yield from _lines_or_object(file.read(), piece)
            else:
                file.seek(piece.start)
                yield from _lines(_until(file, piece), piece)
    except (OSError, EOFError, zlib.error) as error:
        fault = unreadable(piece.path, error if isinstance(error, OSError) else OSError(str(error)))
        yield Fault(piece.path, fault), piece.path, 0


def _opened(piece: Slice) -> IO[bytes]:
    return gzip.open(piece.path, "rb") if piece.kind.endswith(".gz") else Path(piece.path).open("rb")


def _first_character(file: IO[bytes]) -> bytes:
    first = file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    file.seek(0)
    return first


def _until(file: IO[bytes], piece: Slice) -> Iterator[bytes]:
    if piece.kind.endswith(".gz"):
        yield from file
        return
    left = piece.stop - piece.start
    while left > 0 and (line := file.readline()):
        left -= len(line)
        yield line


def _lines(lines: Iterable[bytes], piece: Slice) -> Iterator[Place]:
    for number, line in enumerate(lines, start=piece.first):
        where = f"{piece.path} line {number}"
        text = decode(line, piece.path, f" line {number}")
        if isinstance(text, Fault):
            yield text, where, number
        elif text.strip():
            yield _parsed(text, where, piece), where, number


def _array(raw: bytes, piece: Slice) -> Iterator[Place]:
    text = decode(raw, piece.path, "")
    records = text if isinstance(text, Fault) else _parsed(text, piece.path, piece)
    if isinstance(records, Fault):
        yield records, piece.path, 0
        return
    for number, record in enumerate(records, start=1):
        yield record, f"{piece.path} record {number}", number


def _lines_or_object(raw: bytes, piece: Slice) -> Iterator[Place]:
    """A .json file that is no array: one object over many lines, or one a line."""
    try:
        record = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        yield from _lines(raw.splitlines(keepends=True), piece)
        return
    yield record, f"{piece.path} record 1", 1


def _parsed(text: str, where: str, piece: Slice) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        return Fault(piece.path, f"{where}: is not JSON ({why}); write one JSON object a line")


def decode(raw: bytes, path: str, where: str) -> str | Fault:
    """UTF-8 text without a byte order mark."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Fault(
            path, f"{path}{where}: byte {error.start} is not UTF-8; convert the file, for instance with iconv -t UTF-8"
        )
