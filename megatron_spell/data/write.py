"""Writing a token store, so that the path holds the old file or the whole new one and nothing else."""

import json
import os
import zlib
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from megatron_spell import __version__
from megatron_spell.data.errors import BuildError
from megatron_spell.data.file_format import (
    CHUNK_TOKENS,
    DIGEST_BYTES,
    FORMAT,
    FORMAT_VERSION,
    GZIP_LEVEL,
    PARTS,
    SPLITS,
    TOKEN_TYPE,
    USER_BLOCK_BYTES,
    content_checksum,
    create_part,
    create_tokens,
    index_checksum,
    pack_lines,
    part_checksum,
    source_fingerprints,
    to_attribute,
    user_block,
)
from megatron_spell.data.journal import TokenJournal
from megatron_spell.data.store import TokenStore
from megatron_spell.types.documents import DocumentSet

_CHUNKS_AT_ONCE = 64


class Origin(NamedTuple):
    """Where a stored document came from; `digest` is `document_digest` of its text."""

    source: str
    group: str
    digest: bytes


class StoreWriter:
    """Writes sets into a draft beside `path`; `finish` moves it there. A context manager that removes the draft.

    `journal` is for whoever tokenises; while it is held no other writer of this path can begin. Equal sets and header
    give identical bytes: nothing of the time or machine is written.
    """

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        """`num_threads` compress. Raises BuildError when there is no place to write to."""
        if path.is_dir():
            raise BuildError(f"out = {path}: is a folder; give the path of a file")
        self._path = path
        self._draft = path.with_name(f".{path.name}.draft")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.journal = TokenJournal(path)
            self._file = _draft_file(self._draft, self.journal)
        except (OSError, RuntimeError) as error:
            raise unwritable(path, error) from None
        self._tokens = create_tokens(self._file)
        self._index = _GrowingIndex()
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="compress")

    @property
    def num_tokens(self) -> int:
        return self._index.num_tokens

    def copy(self, store: TokenStore) -> None:
        """Begin with all that `store` holds; its chunks are copied as they are."""
        self._index = _GrowingIndex.of(store)
        num_chunks = self._index.num_tokens // CHUNK_TOKENS
        self._tokens.resize(num_chunks * CHUNK_TOKENS, axis=0)
        for number in range(num_chunks):
            self._tokens.id.write_direct_chunk((number * CHUNK_TOKENS,), store.packed_chunk(number))
        del self._index.chunk_sums[num_chunks:]  # the last chunk is filled up
        self._wait(store.token_ids(num_chunks * CHUNK_TOKENS, self._index.num_tokens))

    def add(self, document_set: DocumentSet, origins: Sequence[Origin]) -> None:
        """Add a set; `origins` are those of its documents, in their order."""
        self._index.add(document_set, origins)
        self._wait(*(document.token_ids_T for document in document_set.documents))
        if self._num_waiting >= _CHUNKS_AT_ONCE * CHUNK_TOKENS:
            self._append(whole_chunks=True)

    def finish(self, *, fingerprint: str, sources: Iterable[str], settings: dict[str, Any], counts: dict) -> None:
        """Write index and header, reach the disk, and take the place of what was at the path. Raises BuildError."""
        created_by = f"megatron_spell {__version__}"
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created_by": created_by,
            "tokenizer_fingerprint": fingerprint,
        }
        sources = list(sources)
        build = {"created_by": created_by, "settings": settings, "sources": sources, "counts": counts}
        try:
            self._append(whole_chunks=False)
            self._write_index(header, self._index.parts(sources, json.dumps(build, sort_keys=True)))
            self._file.close()
            with self._draft.open("r+b") as file:
                file.write(user_block(content_checksum(self._draft)))
            _reach_disk(self._draft)
            self._draft.replace(self._path)
            _reach_disk(self._path.parent)
            self.journal.remove()
        except (OSError, RuntimeError) as error:
            raise unwritable(self._path, error) from None

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        with suppress(OSError, RuntimeError):  # a full disk fails once more while the draft is closed
            self._file.close()
        self._draft.unlink(missing_ok=True)
        self.journal.close()

    def _wait(self, *token_ids: np.ndarray) -> None:
        self._waiting.extend(token_ids)
        self._num_waiting += sum(map(len, token_ids))

    def _append(self, whole_chunks: bool) -> None:
        """Only whole chunks on the way: a chunk that is written twice leaves a hole in the file."""
        token_ids = np.concatenate([*self._waiting, np.empty(0, TOKEN_TYPE)]).astype(TOKEN_TYPE, copy=False)
        num = len(token_ids) // CHUNK_TOKENS * CHUNK_TOKENS if whole_chunks else len(token_ids)
        start = self._tokens.shape[0]
        chunks = [token_ids[at : at + CHUNK_TOKENS] for at in range(0, num, CHUNK_TOKENS)]
        try:
            self._tokens.resize(start + num, axis=0)
            for number, packed in enumerate(self._threads.map(_packed, chunks)):
                self._tokens.id.write_direct_chunk((start + number * CHUNK_TOKENS,), packed)
        except (OSError, RuntimeError) as error:
            raise unwritable(self._path, error) from None
        self._index.chunk_sums.extend(map(zlib.crc32, chunks))
        self._waiting, self._num_waiting = [token_ids[num:]], len(token_ids) - num

    def _write_index(self, header: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
        for name in PARTS:
            create_part(self._file, name, parts[name])
        checksum = index_checksum(header, {name: part_checksum(part) for name, part in parts.items()})
        attributes = header | {"index_checksum": checksum}
        self._file.attrs.update({name: to_attribute(value) for name, value in attributes.items()})


class _GrowingIndex:
    """All parts but the tokens while they grow, packed: a million documents are to fit beside a tokenizer."""

    def __init__(self) -> None:
        self.document_offsets = array("q", [0])
        self.labels = bytearray()
        self.digests = bytearray()
        self.groups = array("i")
        self.document_sources = array("i")
        self.set_offsets = array("q", [0])
        self.label_offsets = array("q", [0])
        self.set_ids: list[str] = []
        self.splits = bytearray()
        self.group_numbers: dict[str, int] = {}
        self.source_numbers: dict[str, int] = {}
        self.builds: list[str] = []
        self.chunk_sums = array("I")

    @classmethod
    def of(cls, store: TokenStore) -> "_GrowingIndex":
        index = cls()
        index.document_offsets = array("q", store.part("documents/offsets").tobytes())
        index.labels = bytearray(store.part("documents/labels").tobytes())
        index.digests = bytearray(store.part("documents/digests").tobytes())
        index.groups = array("i", store.part("documents/groups").tobytes())
        index.document_sources = array("i", store.part("documents/sources").tobytes())
        index.set_offsets = array("q", store.part("sets/offsets").tobytes())
        index.label_offsets = array("q", store.part("sets/label_offsets").tobytes())
        index.set_ids = store.lines("sets/ids")
        index.splits = bytearray(store.part("sets/splits").tobytes())
        index.group_numbers = {name: number for number, name in enumerate(store.lines("groups"))}
        index.source_numbers = {name: number for number, name in enumerate(store.sources)}
        index.builds = store.lines("builds")
        index.chunk_sums = array("I", store.part("chunks/crc32").tobytes())
        return index

    @property
    def num_tokens(self) -> int:
        return self.document_offsets[-1]

    def add(self, document_set: DocumentSet, origins: Sequence[Origin]) -> None:
        groups, sources, num_tokens = self.group_numbers, self.source_numbers, self.num_tokens
        self.labels += pack_lines([label for d in document_set.documents for label in (d.doc_id, d.title)])
        self.digests += b"".join([origin.digest for origin in origins])
        for document, origin in zip(document_set.documents, origins, strict=True):
            num_tokens += len(document.token_ids_T)
            self.document_offsets.append(num_tokens)
            self.groups.append(groups.setdefault(origin.group, len(groups)))
            self.document_sources.append(sources.setdefault(origin.source, len(sources)))
        self.set_ids.append(document_set.set_id)
        self.splits.append(SPLITS.index(document_set.split))
        self.set_offsets.append(len(self.groups))
        self.label_offsets.append(len(self.labels))

    def parts(self, sources: Iterable[str], build: str) -> dict[str, np.ndarray]:
        """All parts but the tokens. `sources` are named even when nothing came out of them."""
        for source in sources:
            self.source_numbers.setdefault(source, len(self.source_numbers))
        digests = np.frombuffer(self.digests, np.uint8).reshape(-1, DIGEST_BYTES)
        fingerprints = source_fingerprints(digests, np.array(self.document_sources), len(self.source_numbers))
        parts = {
            "documents/offsets": self.document_offsets,
            "documents/labels": self.labels,
            "documents/digests": self.digests,
            "documents/groups": self.groups,
            "documents/sources": self.document_sources,
            "sets/offsets": self.set_offsets,
            "sets/label_offsets": self.label_offsets,
            "sets/ids": pack_lines(self.set_ids),
            "sets/splits": self.splits,
            "sources/names": pack_lines(self.source_numbers),
            "sources/fingerprints": pack_lines(fingerprints),
            "groups": pack_lines(self.group_numbers),
            "builds": pack_lines([*self.builds, build]),
            "chunks/crc32": self.chunk_sums,
        }
        return {name: np.frombuffer(part, PARTS[name]) for name, part in parts.items()}


def _draft_file(draft: Path, journal: TokenJournal) -> h5py.File:
    # The oldest file format keeps no times of change and is read by every version of the library.
    form = {"libver": ("earliest", "v110"), "userblock_size": USER_BLOCK_BYTES}
    try:
        return h5py.File(draft, "w", locking=False, **form)
    except BaseException:
        journal.close()
        raise


def _packed(chunk: np.ndarray) -> bytes:
    """A chunk as HDF5's shuffle and gzip filters leave it; the last one is filled up with zeros."""
    whole = np.zeros(CHUNK_TOKENS, TOKEN_TYPE)
    whole[: len(chunk)] = chunk
    shuffled = np.ascontiguousarray(whole.view(np.uint8).reshape(-1, TOKEN_TYPE.itemsize).T)
    return zlib.compress(shuffled, GZIP_LEVEL)


def _reach_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: Exception) -> BuildError:
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
    return BuildError(f"out = {path}: cannot be written: {why}; give a path with room and write permission")
