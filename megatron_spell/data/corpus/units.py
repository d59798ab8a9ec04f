"""All units of a corpus at a glance: 80 bytes of columns each; their texts stay on disk."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from megatron_spell.data.clean import UniqueIds
from megatron_spell.data.cluster import Grouped
from megatron_spell.data.corpus.parts import NOT_STANDING, Part, unpack
from megatron_spell.data.documents import Unit, documents_of

_OPEN_FILES = 128


@dataclass(frozen=True, eq=False)
class Units:
    """Columns of all units, by place: their order in the sources. `parts` has each unit's part by number, ascending."""

    files: Sequence[str]  # of each part
    parts: np.ndarray
    sources: np.ndarray
    offsets: np.ndarray
    num_chars: np.ndarray
    num_documents: np.ndarray
    standing: np.ndarray
    groups: np.ndarray
    digests: np.ndarray
    ids: np.ndarray  # of all documents
    first_ids: np.ndarray  # where each unit's ids begin

    def __len__(self) -> int:
        return len(self.parts)

    def where(self, place: int) -> tuple[str, int]:
        """(file, offset) of a unit."""
        return self.files[int(self.parts[place])], int(self.offsets[place])

    def by_part(self, column: np.ndarray) -> list[np.ndarray]:
        """`column`, one value a unit, in the stretches of the parts."""
        return np.split(column, np.searchsorted(self.parts, np.arange(1, len(self.files))))


def load_units(parts: Sequence[Part]) -> Units:
    """The columns of all `parts`, one after the other."""
    loaded = [part.load_columns() for part in parts]
    lengths = [len(columns["num_chars"]) for columns in loaded]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([columns[name] for columns in loaded])

    num_documents = joined("num_documents")
    return Units(
        files=tuple(str(part.file(".text")) for part in parts),
        parts=np.repeat(np.arange(len(parts), dtype=np.int32), lengths),
        sources=np.repeat(np.array([part.source for part in parts], dtype=np.int32), lengths),
        offsets=np.concatenate([columns["offsets"][:-1] for columns in loaded]),
        num_chars=joined("num_chars"),
        num_documents=num_documents,
        standing=joined("standing"),
        groups=joined("groups"),
        digests=joined("digests"),
        ids=joined("ids"),
        first_ids=np.concatenate([[0], np.cumsum(num_documents, dtype=np.int64)]),
    )


class Texts(AbstractContextManager):
    """Units by place, read when they are asked for."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()

    def at(self, where: tuple[str, int]) -> Unit:
        path, offset = where
        if path not in self._files:
            if len(self._files) >= _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[path] = Path(path).open("rb")  # noqa: SIM115
        self._files[path].seek(offset)
        return unpack(self._files[path].readline())

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def grouped_units(units: Units, kept: np.ndarray) -> Grouped:
    """The kept places by group, in order."""
    grouped = Grouped()
    groups, standing = units.groups[kept].tolist(), units.standing[kept].tolist()
    for place, group, stands in zip(kept.tolist(), groups, standing, strict=True):
        side = grouped.plain if stands == NOT_STANDING else grouped.standing
        side.setdefault(group, []).append(place)
    return grouped


def renamed_documents(units: Units, kept: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """The ids of all documents of those kept units whose ids were given before."""
    given, renamed = UniqueIds(), {}
    with Texts() as texts:
        for place in kept:
            hashes = units.ids[units.first_ids[place] : units.first_ids[place + 1]].tolist()
            if len(set(hashes)) == len(hashes) and given.take_all(hashes):
                continue
            renamed[place] = tuple(given.unique(d.doc_id) for d in documents_of(texts.at(units.where(place))))
    return renamed
