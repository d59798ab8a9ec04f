"""Writing a token store, so that the path holds the old file or the whole new one and nothing else."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from megatron_spell import __version__
from megatron_spell.data.errors import BuildError
from megatron_spell.data.store import (
    FORMAT,
    FORMAT_VERSION,
    INDEX,
    SPLITS,
    TOKEN_TYPE,
    TOKENS,
    index_checksum,
    pack_lines,
    to_attribute,
)
from megatron_spell.types.documents import DocumentSet

# Read at random, a set costs about one chunk more than its own tokens: docs/data.md has the measurement.
CHUNK_TOKENS = 8192
_GZIP_LEVEL = 4


class StoreWriter:
    """Writes sets into a draft beside `path`; `finish` moves it there. A context manager that removes the draft.

    Equal sets and header give identical bytes: nothing of the time or machine is written.
    """

    def __init__(self, path: Path) -> None:
        """Raises BuildError when there is no place to write to."""
        if path.is_dir():
            raise BuildError(f"out = {path}: is a folder; give the path of a file")
        self._path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The oldest file format keeps no times of change and is read by every version of the library.
            self._file = h5py.File(self._draft, "w", libver=("earliest", "v110"), locking=False)
        except (OSError, RuntimeError) as error:
            raise _unwritable(path, error) from None
        self._tokens = self._file.create_dataset(
            TOKENS, (0,), TOKEN_TYPE, maxshape=(None,), chunks=(CHUNK_TOKENS,), compression=_GZIP_LEVEL, shuffle=True
        )
        self._hash = hashlib.sha256()
        self._waiting: list[np.ndarray] = []
        self._document_lengths: list[int] = []
        self._document_ids: list[str] = []
        self._titles: list[str] = []
        self._set_lengths: list[int] = []
        self._set_ids: list[str] = []
        self._splits: list[int] = []

    @property
    def num_tokens(self) -> int:
        return sum(self._document_lengths)

    def add(self, document_set: DocumentSet) -> None:
        self._set_ids.append(document_set.set_id)
        self._splits.append(SPLITS.index(document_set.split))
        self._set_lengths.append(len(document_set.documents))
        for document in document_set.documents:
            self._document_ids.append(document.doc_id)
            self._titles.append(document.title)
            self._document_lengths.append(document.num_tokens)
            self._waiting.append(document.token_ids_T)
        if sum(map(len, self._waiting)) >= 64 * CHUNK_TOKENS:
            self._append(whole_chunks=True)

    def finish(self, *, fingerprint: str, sources: Iterable[str], settings: dict[str, Any], counts: dict) -> None:
        """Write index and header, reach the disk, and take the place of what was at the path. Raises BuildError."""
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created_by": f"megatron_spell {__version__}",
            "tokenizer_fingerprint": fingerprint,
            "settings": json.dumps(settings, sort_keys=True),
            "counts": json.dumps(counts, sort_keys=True),
        }
        try:
            self._append(whole_chunks=False)
            self._write_index(header, list(sources))
            self._file.close()
            _reach_disk(self._draft)
            self._draft.replace(self._path)
            _reach_disk(self._path.parent)
        except (OSError, RuntimeError) as error:
            raise _unwritable(self._path, error) from None

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, RuntimeError):  # a full disk fails once more while the draft is closed
            self._file.close()
        self._draft.unlink(missing_ok=True)

    def _append(self, whole_chunks: bool) -> None:
        """Only whole chunks on the way: a chunk that is written twice leaves a hole in the file."""
        if not self._waiting:
            return
        token_ids = np.concatenate(self._waiting).astype(TOKEN_TYPE, copy=False)
        num = len(token_ids) // CHUNK_TOKENS * CHUNK_TOKENS if whole_chunks else len(token_ids)
        start = self._tokens.shape[0]
        self._tokens.resize(start + num, axis=0)
        self._tokens[start:] = token_ids[:num]
        self._hash.update(token_ids[:num].tobytes())
        self._waiting = [token_ids[num:]]

    def _write_index(self, header: dict[str, Any], sources: list[str]) -> None:
        parts = {
            "documents/offsets": _offsets(self._document_lengths),
            "documents/ids": pack_lines(self._document_ids),
            "documents/titles": pack_lines(self._titles),
            "sets/offsets": _offsets(self._set_lengths),
            "sets/ids": pack_lines(self._set_ids),
            "sets/splits": np.array(self._splits, dtype=np.uint8),
            "sources": pack_lines(sources),
        }
        for name, dtype in INDEX.items():
            self._file.create_dataset(name, data=parts[name].astype(dtype), compression=_GZIP_LEVEL, shuffle=True)
        index_sum = index_checksum(header, parts)
        self._hash.update(index_sum.encode())
        sums = {"index_checksum": index_sum, "checksum": self._hash.hexdigest()}
        self._file.attrs.update({name: to_attribute(value) for name, value in (header | sums).items()})


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _reach_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: Exception) -> BuildError:
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
    return BuildError(f"out = {path}: cannot be written: {why}; give a path with room and write permission")
