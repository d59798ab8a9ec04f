"""The token store: one HDF5 file with the token ids of all documents, set by set (docs/data.md has the layout)."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from megatron_spell.data.errors import StoreError
from megatron_spell.data.file_format import (
    DIGEST_BYTES,
    FORMAT,
    FORMAT_VERSION,
    HEADER,
    INDEX,
    PARTS,
    SIGNATURE,
    SPLITS,
    TOKEN_TYPE,
    TOKENS,
    USER_BLOCK_BYTES,
    find_part,
    index_checksum,
    read_attribute,
    read_part,
    unpack_lines,
)
from megatron_spell.types.documents import Document, DocumentSet

# What h5py raises for a file whose bytes contradict each other.
LIBRARY_FAULTS = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError, OverflowError)


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """What a store holds. `num_dropped` counts by reason over all builds and `settings` are those of the first.

    `num_builds` is 1 and one more for every time that documents were added.
    """

    sources: tuple[str, ...]
    source_fingerprints: tuple[str, ...]
    tokenizer_fingerprint: str
    created_by: str
    settings: dict[str, Any]
    num_builds: int
    num_documents: int
    num_tokens: int
    num_sets: dict[str, int]
    num_dropped: dict[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """What an opened store holds in memory: 8 bytes a document and some 100 a set."""

    document_offsets: np.ndarray
    set_offsets: np.ndarray
    label_offsets: np.ndarray
    set_numbers: dict[str, int]
    splits: np.ndarray
    sources: tuple[str, ...]
    source_fingerprints: tuple[str, ...]
    builds: tuple[dict[str, Any], ...]


class TokenStore:
    """An opened store, read-only. Any number of processes and threads may have one file open at the same time.

    A context manager. Where documents and sets begin is held in memory; tokens, ids and titles are read on demand.
    Every method may raise StoreError.
    """

    def __init__(self, path: Path, file: h5py.File, header: dict[str, Any], index: _Index) -> None:
        """Not for use outside: see `open`."""
        self.path = path
        self._file = file
        self._header = header
        self._index = index
        self._tokens = file[TOKENS]
        self._labels = file["documents/labels"]

    @classmethod
    def open(cls, path: Path | str) -> "TokenStore":
        """Open `path`; its index is compared with the checksums. Raises StoreError naming the file and the way out."""
        path = Path(path)
        demand_hdf5(path)
        with damage_named(path):
            file = h5py.File(path, "r", locking=False)
        try:
            with damage_named(path):
                return cls._read(path, file)
        except BaseException:
            file.close()
            raise

    @classmethod
    def _read(cls, path: Path, file: h5py.File) -> "TokenStore":
        demand_version(path, file)
        header = {name: read_attribute(file, name) for name in HEADER}
        part_checksums = {name: read_attribute(find_part(file, name), "sha256") for name in PARTS}
        if index_checksum(header, part_checksums) != read_attribute(file, "index_checksum"):
            raise store_error(path, "is damaged: the index does not fit its checksum")
        index = _parse_index({name: read_part(file, name) for name in INDEX})
        tokens = file[TOKENS]
        if tokens.dtype != TOKEN_TYPE or tokens.shape != (index.document_offsets[-1],):
            raise store_error(path, "is damaged: the tokens do not fit the index")
        if file["documents/labels"].shape != (index.label_offsets[-1],):
            raise store_error(path, "is damaged: ids and titles do not fit the index")
        return cls(path, file, header, index)

    @property
    def tokenizer_fingerprint(self) -> str:
        return self._header["tokenizer_fingerprint"]

    @property
    def sources(self) -> tuple[str, ...]:
        return self._index.sources

    @property
    def builds(self) -> tuple[dict[str, Any], ...]:
        """created_by, settings, sources and counts of the build and of every addition since."""
        return self._index.builds

    def set_ids(self, split: str) -> tuple[str, ...]:
        """Ids of the sets of "train" or "heldout", in the store's order."""
        if split not in SPLITS:
            raise StoreError(f"split {split!r} is unknown; known are {', '.join(SPLITS)}")
        number = SPLITS.index(split)
        return tuple(set_id for set_id, at in self._index.set_numbers.items() if self._index.splits[at] == number)

    def document_lengths(self, set_id: str) -> tuple[int, ...]:
        """Tokens of each document of a set; reads no tokens."""
        start, stop = self._documents_of(set_id)
        return tuple(np.diff(self._index.document_offsets[start : stop + 1]).tolist())

    def document_titles(self, set_id: str) -> tuple[str, ...]:
        return tuple(self._labels_of(set_id)[1::2])

    def split_of(self, set_id: str) -> str:
        self._documents_of(set_id)
        return SPLITS[self._index.splits[self._index.set_numbers[set_id]]]

    def document_set(self, set_id: str) -> DocumentSet:
        """All documents of a set with their token ids, which cannot be written to."""
        start, stop = self._documents_of(set_id)
        bounds = self._index.document_offsets[start : stop + 1]
        with damage_named(self.path):
            token_ids = self._tokens[bounds[0] : bounds[-1]]
        token_ids.flags.writeable = False
        labels = self._labels_of(set_id)
        if len(labels) != 2 * (stop - start):
            raise store_error(self.path, f"is damaged: ids and titles of {set_id} do not fit the index")
        bounds = (bounds - bounds[0]).tolist()
        documents = tuple(
            Document(labels[2 * n], labels[2 * n + 1], token_ids[bounds[n] : bounds[n + 1]])
            for n in range(stop - start)
        )
        return DocumentSet(set_id, self.split_of(set_id), documents)

    def summary(self) -> StoreSummary:
        index = self._index
        dropped: Counter[str] = Counter()
        for build in index.builds:
            dropped.update(build["counts"].get("dropped", {}))
        return StoreSummary(
            sources=self.sources,
            source_fingerprints=index.source_fingerprints,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            created_by=self._header["created_by"],
            settings=index.builds[0]["settings"],
            num_builds=len(index.builds),
            num_documents=len(index.document_offsets) - 1,
            num_tokens=int(index.document_offsets[-1]),
            num_sets={split: len(self.set_ids(split)) for split in SPLITS},
            num_dropped=dict(dropped),
        )

    def all_document_lengths(self) -> np.ndarray:
        """int64 tokens of every document, in the store's order."""
        return np.diff(self._index.document_offsets)

    def set_sizes(self) -> np.ndarray:
        """int64 documents of every set, in the store's order."""
        return np.diff(self._index.set_offsets)

    def all_splits(self) -> np.ndarray:
        """Of every set, in the store's order: the place of its split in SPLITS."""
        return self._index.splits

    def document_sources(self) -> np.ndarray:
        """Of every document, in the store's order: the place of its source in `sources`."""
        return self.part("documents/sources")

    def document_ids(self) -> list[str]:
        """Of every document, in the store's order; reads all of them."""
        return self.lines("documents/labels")[::2]

    def document_groups(self) -> np.ndarray:
        """Of every document, in the store's order: the place of its group in `lines("groups")`."""
        return self.part("documents/groups")

    def document_digests(self) -> np.ndarray:
        """uint8 (documents, 16): `document_digest` of every text."""
        return self.part("documents/digests").reshape(-1, DIGEST_BYTES)

    def part(self, name: str) -> np.ndarray:
        """A whole part of the file, compared with its checksum."""
        with damage_named(self.path):
            return read_part(self._file, name)

    def lines(self, name: str) -> list[str]:
        """A part that holds lines of text."""
        with damage_named(self.path):
            return unpack_lines(self.part(name))

    def packed_chunk(self, number: int) -> bytes:
        """A whole chunk of the tokens as it stands on disk."""
        with damage_named(self.path):
            return self._tokens.id.read_direct_chunk((number * self._tokens.chunks[0],))[1]

    def token_ids(self, start: int, stop: int) -> np.ndarray:
        """int32 ids at those places of all tokens, documents one after the other."""
        with damage_named(self.path):
            return self._tokens[start:stop]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "TokenStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _documents_of(self, set_id: str) -> tuple[int, int]:
        number = self._index.set_numbers.get(set_id)
        if number is None:
            first, *_, last = [*self._index.set_numbers, *self._index.set_numbers]
            raise StoreError(f"{self.path} holds no set {set_id!r}; give one of {first} to {last}")
        return int(self._index.set_offsets[number]), int(self._index.set_offsets[number + 1])

    def _labels_of(self, set_id: str) -> list[str]:
        """Id and title of each document of a set, by turns."""
        self._documents_of(set_id)
        number = self._index.set_numbers[set_id]
        start, stop = self._index.label_offsets[number : number + 2]
        with damage_named(self.path):
            return unpack_lines(self._labels[start:stop])


def demand_hdf5(path: Path) -> None:
    """Raises StoreError for a path that holds no HDF5 file, with or without this program's block before it."""
    try:
        if not path.exists():
            raise store_error(path, "is not there", way_out="build one")
        if not path.is_file():
            raise store_error(path, "is not a file", way_out="build one")
        with path.open("rb") as file:
            start = file.read(USER_BLOCK_BYTES + len(SIGNATURE))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}; give it read permission") from None
    if not start:
        raise store_error(path, "is empty")
    if SIGNATURE not in (start[: len(SIGNATURE)], start[USER_BLOCK_BYTES:]):
        own = start.startswith(FORMAT.encode()[: len(start)])
        raise store_error(path, "is truncated or damaged" if own else "is not an HDF5 file")


def demand_version(path: Path, file: h5py.File) -> None:
    """Raises StoreError for an HDF5 file that is no store of this version."""
    if "format" not in file.attrs or read_attribute(file, "format") != FORMAT:
        raise store_error(path, "is an HDF5 file but no token store")
    version = read_attribute(file, "format_version")
    if version != FORMAT_VERSION:
        raise store_error(path, f"has store version {version}, this program reads {FORMAT_VERSION}")


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """What h5py says of a broken file becomes a StoreError that names the file."""
    try:
        yield
    except StoreError:
        raise
    except LIBRARY_FAULTS as error:
        why = " ".join(str(error).split())[:120]
        raise store_error(path, f"is truncated or damaged ({why})") from None


def store_error(path: Path, fault: str, way_out: str = "build it again") -> StoreError:
    return StoreError(
        f"{path} {fault}; {way_out} with `megatron-spell data build SOURCE --tokenizer FOLDER --out {path}`"
    )


def _parse_index(parts: dict[str, np.ndarray]) -> _Index:
    set_ids = unpack_lines(parts["sets/ids"])
    index = _Index(
        document_offsets=parts["documents/offsets"],
        set_offsets=parts["sets/offsets"],
        label_offsets=parts["sets/label_offsets"],
        set_numbers={set_id: number for number, set_id in enumerate(set_ids)},
        splits=parts["sets/splits"],
        sources=tuple(unpack_lines(parts["sources/names"])),
        source_fingerprints=tuple(unpack_lines(parts["sources/fingerprints"])),
        builds=tuple(json.loads(line) for line in unpack_lines(parts["builds"])),
    )
    _demand_bounds(index.document_offsets, len(index.document_offsets) - 1)
    _demand_bounds(index.set_offsets, len(index.set_numbers))
    _demand_bounds(index.label_offsets, len(index.set_numbers))
    if index.set_offsets[-1] != len(index.document_offsets) - 1:
        raise ValueError("documents and sets do not fit each other")
    if len(index.splits) != len(set_ids) or np.any(index.splits >= len(SPLITS)):
        raise ValueError("sets and splits do not fit each other")
    if len(index.sources) != len(index.source_fingerprints) or not index.builds:
        raise ValueError("sources and builds do not fit each other")
    return index


def _demand_bounds(offsets: np.ndarray, num_entries: int) -> None:
    if len(offsets) != num_entries + 1 or num_entries < 1 or offsets[0] != 0 or np.any(np.diff(offsets) <= 0):
        raise ValueError("offsets do not rise from 0")
