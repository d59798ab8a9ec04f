"""Parts: about 16 MB of a corpus each, in normal form on disk, readable in order and one unit at a time."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from megatron_spell.data.clean import id_hash, text_digest
from megatron_spell.data.corpus.work import read_arrays, read_json, write_arrays, write_json, write_whole
from megatron_spell.data.documents import RawDocument, RawSet, Unit

NOT_STANDING = -1
HINTS = ("", "math", "text")
_COLUMNS = {
    "offsets": np.int64,  # units + 1, where each stands in the text file
    "num_chars": np.int64,
    "num_documents": np.int32,
    "standing": np.int8,  # the hint's number for a set that stands as it is, NOT_STANDING for a document
    "quality": np.float64,  # NaN where there is none
    "groups": np.uint64,
    "digests": np.uint64,  # [units, 2]
    "ids": np.uint64,  # of all documents, one unit after the other
}


@dataclass(frozen=True)
class Part:
    """One part by the beginning of its files' names: .text (a JSON line a unit), .npz (columns), .json (faults).

    The .json is written last: a part that has one is whole.
    """

    folder: Path
    key: str
    source: int  # which of the build's sources

    def file(self, ending: str) -> Path:
        return self.folder / f"{self.key}{ending}"

    @property
    def is_whole(self) -> bool:
        return self.file(".json").exists()

    def load_columns(self) -> dict[str, np.ndarray]:
        return read_arrays(self.file(".npz"))

    def faults(self) -> list[tuple[str, str, int]]:
        """(file, the first fault's message, how many) of what could not be read."""
        return [tuple(fault) for fault in read_json(self.file(".json"))["faults"]]

    def units(self) -> Iterator[Unit]:
        with self.file(".text").open("rb") as file:
            yield from map(unpack, file)

    def write(self, units: Iterable[Unit], faults: list[tuple[str, str, int]]) -> None:
        """Write `units`, read once; `faults` is looked at after that."""
        columns: dict[str, list] = {name: [] for name in _COLUMNS}
        write_whole(self.file(".text"), lambda file: _write_units(file, units, columns))
        arrays = {name: np.array(columns[name], dtype=dtype) for name, dtype in _COLUMNS.items()}
        write_arrays(self.file(".npz"), **arrays | {"digests": arrays["digests"].reshape(-1, 2)})
        write_json(self.file(".json"), {"faults": faults})


def read_unit(path: Path, offset: int) -> Unit:
    """The unit that stands at `offset` of a part's text file."""
    with path.open("rb") as file:
        file.seek(offset)
        return unpack(file.readline())


def _write_units(file: IO[bytes], units: Iterable[Unit], columns: dict[str, list]) -> None:
    columns["offsets"].append(0)
    for unit in units:
        file.write(pack(unit))
        columns["offsets"].append(file.tell())
        _append(unit, columns)


def _append(unit: Unit, columns: dict[str, list]) -> None:
    documents = unit.documents if isinstance(unit, RawSet) else (unit,)
    digest = text_digest(unit.text)
    columns["num_chars"].append(len(unit.text))
    columns["num_documents"].append(len(documents))
    columns["standing"].append(HINTS.index(unit.hint) if isinstance(unit, RawSet) else NOT_STANDING)
    columns["quality"].append(np.nan if unit.quality is None else unit.quality)
    columns["groups"].append(id_hash(unit.group))
    columns["digests"].append((int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")))
    columns["ids"].extend(id_hash(document.doc_id) for document in documents)


def pack(unit: Unit) -> bytes:
    if isinstance(unit, RawSet):
        documents = [[d.doc_id, d.title, d.text] for d in unit.documents]
        record = {"group": unit.group, "hint": unit.hint, "documents": documents}
    else:
        record = {"group": unit.group, "document": [unit.doc_id, unit.title, unit.text]}
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"


def unpack(line: bytes) -> Unit:
    record = json.loads(line)
    group = record["group"]
    if "document" in record:
        return RawDocument(*record["document"], group)
    return RawSet(group, tuple(RawDocument(*one, group) for one in record["documents"]), record["hint"])
