"""The token store: one HDF5 file with the token ids of all documents, set by set (docs/data.md has the layout)."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from megatron_spell.data.errors import StoreError
from megatron_spell.types.documents import Document, DocumentSet

FORMAT = "megatron_spell token store"
FORMAT_VERSION = 1
SPLITS = ("train", "heldout")  # as numbered in sets/splits
# Attributes that the index checksum covers besides the index itself.
_HEADER = ("format", "format_version", "created_by", "tokenizer_fingerprint", "settings", "counts")
# Name and type of the index's parts; uint8 parts are UTF-8 text, one line an entry.
INDEX = {
    "documents/offsets": np.dtype("<i8"),
    "documents/ids": np.dtype("u1"),
    "documents/titles": np.dtype("u1"),
    "sets/offsets": np.dtype("<i8"),
    "sets/ids": np.dtype("u1"),
    "sets/splits": np.dtype("u1"),
    "sources": np.dtype("u1"),
}
TOKENS = "tokens"
TOKEN_TYPE = np.dtype("<i4")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VERIFY_TOKENS = 1 << 22
# What h5py raises for a file whose bytes contradict each other.
_DAMAGE = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError, OverflowError)


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """What a store holds. `num_dropped` counts by reason; `document_lengths` are tokens, in the store's order."""

    sources: tuple[str, ...]
    tokenizer_fingerprint: str
    created_by: str
    settings: dict[str, Any]
    num_documents: int
    num_tokens: int
    num_sets: dict[str, int]
    num_dropped: dict[str, int]
    document_lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """The parts of the index in memory: about 16 bytes and the id and title for each document."""

    document_offsets: np.ndarray
    document_ids: tuple[str, ...]
    titles: tuple[str, ...]
    set_offsets: np.ndarray
    set_numbers: dict[str, int]
    splits: np.ndarray
    sources: tuple[str, ...]


class TokenStore:
    """An opened store, read-only. Any number of processes and threads may have one file open at the same time.

    A context manager. The index is held in memory, tokens are read on demand. Every method may raise StoreError.
    """

    def __init__(self, path: Path, file: h5py.File, header: dict[str, Any], index: _Index) -> None:
        """Not for use outside: see `open`."""
        self._path = path
        self._file = file
        self._header = header
        self._index = index

    @classmethod
    def open(cls, path: Path | str) -> "TokenStore":
        """Open `path`; its index is compared with the checksum. Raises StoreError naming the file and the way out."""
        path = Path(path)
        _demand_hdf5(path)
        with _damage_named(path):
            file = h5py.File(path, "r", locking=False)
        try:
            with _damage_named(path):
                return cls._read(path, file)
        except BaseException:
            file.close()
            raise

    @classmethod
    def _read(cls, path: Path, file: h5py.File) -> "TokenStore":
        if "format" not in file.attrs or _attribute(file, "format") != FORMAT:
            raise _store_error(path, "is an HDF5 file but no token store")
        version = _attribute(file, "format_version")
        if version != FORMAT_VERSION:
            raise _store_error(path, f"has store version {version}, this program reads {FORMAT_VERSION}")
        header = {name: _attribute(file, name) for name in _HEADER}
        parts = {name: _part(file, name, dtype) for name, dtype in INDEX.items()}
        if index_checksum(header, parts) != _attribute(file, "index_checksum"):
            raise _store_error(path, "is damaged: the index does not fit its checksum")
        index = _parse_index(parts)
        tokens = file[TOKENS]
        if tokens.dtype != TOKEN_TYPE or tokens.shape != (index.document_offsets[-1],):
            raise _store_error(path, "is damaged: the tokens do not fit the index")
        return cls(path, file, header, index)

    @property
    def tokenizer_fingerprint(self) -> str:
        return self._header["tokenizer_fingerprint"]

    @property
    def sources(self) -> tuple[str, ...]:
        return self._index.sources

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
        start, stop = self._documents_of(set_id)
        return self._index.titles[start:stop]

    def split_of(self, set_id: str) -> str:
        self._documents_of(set_id)
        return SPLITS[self._index.splits[self._index.set_numbers[set_id]]]

    def document_set(self, set_id: str) -> DocumentSet:
        """The set with its token ids (int32, read-only)."""
        start, stop = self._documents_of(set_id)
        offsets = self._index.document_offsets[start : stop + 1]
        token_ids = self._tokens(int(offsets[0]), int(offsets[-1]))
        token_ids.flags.writeable = False
        bounds = offsets - offsets[0]
        documents = tuple(
            Document(self._index.document_ids[i], self._index.titles[i], token_ids[bounds[n] : bounds[n + 1]])
            for n, i in enumerate(range(start, stop))
        )
        return DocumentSet(set_id, self.split_of(set_id), documents)

    def summary(self) -> StoreSummary:
        index = self._index
        counts = json.loads(self._header["counts"])
        return StoreSummary(
            sources=self.sources,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            created_by=self._header["created_by"],
            settings=json.loads(self._header["settings"]),
            num_documents=len(index.document_ids),
            num_tokens=int(index.document_offsets[-1]),
            num_sets={split: len(self.set_ids(split)) for split in SPLITS},
            num_dropped=counts["dropped"],
            document_lengths=tuple(np.diff(index.document_offsets).tolist()),
        )

    def verify(self) -> None:
        """Read every token and compare with the checksum of the whole content. Raises StoreError."""
        with _damage_named(self._path):
            digest = hashlib.sha256()
            for start in range(0, int(self._index.document_offsets[-1]), _VERIFY_TOKENS):
                digest.update(self._file[TOKENS][start : start + _VERIFY_TOKENS].tobytes())
            digest.update(_attribute(self._file, "index_checksum").encode())
            if digest.hexdigest() != _attribute(self._file, "checksum"):
                raise _store_error(self._path, "is damaged: the tokens do not fit their checksum")

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
            raise StoreError(f"{self._path} holds no set {set_id!r}; give one of {first} to {last}")
        return int(self._index.set_offsets[number]), int(self._index.set_offsets[number + 1])

    def _tokens(self, start: int, stop: int) -> np.ndarray:
        with _damage_named(self._path):
            return self._file[TOKENS][start:stop]


def index_checksum(header: dict[str, Any], parts: dict[str, np.ndarray]) -> str:
    """sha256 over the header attributes and the index's parts, each with its length."""
    digest = hashlib.sha256(json.dumps({name: header[name] for name in _HEADER}, sort_keys=True).encode())
    for name, dtype in INDEX.items():
        digest.update(f"\n{name} {parts[name].size}\n".encode())
        digest.update(parts[name].astype(dtype, copy=False).tobytes())
    return digest.hexdigest()


def pack_lines(lines: list[str]) -> np.ndarray:
    """UTF-8 bytes, a line an entry. Raises ValueError for an entry that is no single line."""
    if any("\n" in line for line in lines):
        raise ValueError("an id or title holds a line break")
    return np.frombuffer("\n".join(lines).encode("utf-8"), dtype=np.uint8)


def _demand_hdf5(path: Path) -> None:
    try:
        if not path.exists():
            raise _store_error(path, "is not there", way_out="build one")
        if not path.is_file():
            raise _store_error(path, "is not a file", way_out="build one")
        with path.open("rb") as file:
            start = file.read(len(_SIGNATURE))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}; give it read permission") from None
    if not start:
        raise _store_error(path, "is empty")
    if start != _SIGNATURE:
        raise _store_error(path, "is not an HDF5 file")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except _DAMAGE as error:
        why = " ".join(str(error).split())[:120]
        raise _store_error(path, f"is truncated or damaged ({why})") from None


def _store_error(path: Path, fault: str, way_out: str = "build it again") -> StoreError:
    return StoreError(
        f"{path} {fault}; {way_out} with `megatron-spell data build SOURCE --tokenizer FOLDER --out {path}`"
    )


def to_attribute(value: int | str) -> Any:
    """Text as bytes of fixed length: one flipped bit in HDF5's heap for the others can make the library loop."""
    return np.bytes_(value.encode("utf-8")) if isinstance(value, str) else np.int64(value)


def _attribute(file: h5py.File, name: str) -> Any:
    value = file.attrs[name]
    return value.decode("utf-8") if isinstance(value, bytes) else value.item()


def _part(file: h5py.File, name: str, dtype: np.dtype) -> np.ndarray:
    part = file[name]
    if part.dtype != dtype or part.ndim != 1:
        raise ValueError(f"{name} is not a list of {dtype.name}")
    return part[:]


def _parse_index(parts: dict[str, np.ndarray]) -> _Index:
    set_ids = _unpack_lines(parts["sets/ids"])
    index = _Index(
        document_offsets=parts["documents/offsets"],
        document_ids=_unpack_lines(parts["documents/ids"]),
        titles=_unpack_lines(parts["documents/titles"]),
        set_offsets=parts["sets/offsets"],
        set_numbers={set_id: number for number, set_id in enumerate(set_ids)},
        splits=parts["sets/splits"],
        sources=_unpack_lines(parts["sources"]),
    )
    _demand_bounds(index.document_offsets, len(index.document_ids))
    _demand_bounds(index.set_offsets, len(index.set_numbers))
    if len(index.titles) != len(index.document_ids) or index.set_offsets[-1] != len(index.document_ids):
        raise ValueError("documents, titles and sets do not fit each other")
    if len(index.splits) != len(set_ids) or np.any(index.splits >= len(SPLITS)):
        raise ValueError("sets and splits do not fit each other")
    return index


def _demand_bounds(offsets: np.ndarray, num_entries: int) -> None:
    if len(offsets) != num_entries + 1 or offsets[0] != 0 or np.any(np.diff(offsets) <= 0):
        raise ValueError("offsets do not rise from 0")


def _unpack_lines(packed: np.ndarray) -> tuple[str, ...]:
    return tuple(packed.tobytes().decode("utf-8").split("\n"))
