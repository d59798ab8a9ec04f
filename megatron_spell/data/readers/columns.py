"""Tables in columns: Parquet by row groups, and the Arrow files of Hugging Face `datasets` by record batches."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_spell.data.documents import Fault, Unit
from megatron_spell.data.errors import SourceError
from megatron_spell.data.readers.records import unit_of
from megatron_spell.data.readers.slices import SLICE_BYTES, ReadOptions, Slice, missing_library, size_and_time

_ROWS = 256  # taken from a row group at a time
DATASET_FILES = frozenset({"state.json", "dataset_info.json"})  # of a folder that datasets.save_to_disk wrote
DATASET_DICT = "dataset_dict.json"


def cut_parquet(kind: str, path: Path, name: str) -> Iterator[Slice]:
    """Runs of row groups of about the usual size. A file that is no Parquet is one slice, whose reading tells so."""
    size, modified_ns = size_and_time(path)
    whole = Slice(kind, str(path), name, num_bytes=size, modified_ns=modified_ns)
    try:
        meta = _parquet(path).metadata
    except SourceError:
        raise
    except Exception:  # told, with its place, by the reading
        yield whole
        return
    sizes = [(meta.row_group(n).total_byte_size, meta.row_group(n).num_rows) for n in range(meta.num_row_groups)]
    yield from _runs(whole, sizes)


def _runs(whole: Slice, sizes: list[tuple[int, int]]) -> Iterator[Slice]:
    """Slices over pieces of (bytes, rows)."""
    start, first, num_bytes, num_rows = 0, 1, 0, 0
    for number, (size, rows) in enumerate(sizes):
        num_bytes, num_rows = num_bytes + size, num_rows + rows
        if num_bytes >= SLICE_BYTES or number == len(sizes) - 1:
            yield replace(whole, start=start, stop=number + 1, first=first)
            start, first, num_bytes, num_rows = number + 1, first + num_rows, 0, 0


def read_columns(piece: Slice, options: ReadOptions) -> Iterator[Unit | Fault]:
    for record, where, number in column_records(piece):
        yield record if isinstance(record, Fault) else unit_of(record, where, number, piece, options)


def column_records(piece: Slice) -> Iterator[tuple[Any, str, int]]:
    """Every row of a slice as a dict, a Fault in the place of what cannot be read."""
    number = piece.first
    try:
        for batch in _parquet_batches(piece) if piece.kind == ".parquet" else _arrow_batches(piece):
            for record in batch.to_pylist():
                yield record, f"{piece.path} row {number}", number
                number += 1
    except SourceError:
        raise
    except Exception as error:  # pyarrow raises many kinds, some of them plain OSError, for damaged files
        why = " ".join(str(error).split())[:120]
        message = f"{piece.path} after row {number - 1}: is damaged or of another kind ({why}); write it anew"
        yield Fault(piece.path, message), piece.path, number


def _parquet_batches(piece: Slice) -> Iterator[Any]:
    file = _parquet(Path(piece.path))
    return file.iter_batches(batch_size=_ROWS, row_groups=range(piece.start, piece.stop or file.num_row_groups))


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise missing_library(path, "pyarrow") from None
    return pyarrow.parquet.ParquetFile(path, memory_map=False)


def cut_arrow(kind: str, path: Path, name: str) -> Iterator[Slice]:
    """Runs of record batches of about the usual size."""
    size, modified_ns = size_and_time(path)
    whole = Slice(kind, str(path), name, num_bytes=size, modified_ns=modified_ns)
    try:
        sizes = [(batch.get_total_buffer_size(), batch.num_rows) for batch in _all_batches(path)]
    except SourceError:
        raise
    except Exception:  # told, with its place, by the reading
        yield replace(whole, stop=-1)
        return
    yield from _runs(whole, sizes)


def _arrow_batches(piece: Slice) -> Iterator[Any]:
    for number, batch in enumerate(_all_batches(Path(piece.path))):
        if 0 <= piece.stop <= number:
            return
        if number >= piece.start:
            yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))


def _all_batches(path: Path) -> Iterator[Any]:
    """The record batches of a file in Arrow's stream format, which `datasets` writes, or its file format."""
    try:
        import pyarrow as pa
    except ImportError:
        raise missing_library(path, "pyarrow") from None
    with pa.memory_map(str(path)) as source:  # batches that are passed over are not read
        magic = source.read(6)
        source.seek(0)
        if magic == b"ARROW1":
            file = pa.ipc.open_file(source)
            yield from (file.get_batch(n) for n in range(file.num_record_batches))
        else:
            yield from pa.ipc.open_stream(source)


def dataset_files(folder: Path) -> list[str]:
    """Names of the Arrow files of a folder that datasets.save_to_disk wrote, in order. Raises SourceError."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder / 'state.json'}: is no state of a saved dataset ({error}); save it again") from None
    if state.get("_indices_data_files"):
        raise SourceError(f"{folder}: its rows stand in another order than its files; save it with flatten_indices()")
    if any(Path(name).name != name for name in names):
        raise SourceError(f"{folder / 'state.json'}: names files outside its folder; save the dataset again")
    return names
