"""The layout of a token store on disk: names, types and checksums (docs/data.md, "The file")."""

import hashlib
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FORMAT = "megatron_spell token store"
FORMAT_VERSION = 2
SPLITS = ("train", "heldout")  # as numbered in sets/splits
HEADER = ("format", "format_version", "created_by", "tokenizer_fingerprint")
# The file's attributes, and of the parts those that a store holds in memory while it is open. uint8 parts are UTF-8
# text, one line an entry, except for the digests.
INDEX = {
    "documents/offsets": np.dtype("<i8"),
    "sets/offsets": np.dtype("<i8"),
    "sets/label_offsets": np.dtype("<i8"),
    "sets/ids": np.dtype("u1"),
    "sets/splits": np.dtype("u1"),
    "sources/names": np.dtype("u1"),
    "sources/fingerprints": np.dtype("u1"),
    "builds": np.dtype("u1"),
}
# Parts that are read when they are asked for.
ON_DEMAND = {
    "documents/labels": np.dtype("u1"),
    "documents/digests": np.dtype("u1"),
    "documents/groups": np.dtype("<i4"),
    "documents/sources": np.dtype("<i4"),
    "groups": np.dtype("u1"),
    "chunks/crc32": np.dtype("<u4"),
}
PARTS = INDEX | ON_DEMAND
TOKENS = "tokens"
TOKEN_TYPE = np.dtype("<i4")
CHUNK_TOKENS = 8192  # docs/data.md and benchmarks/results have the measurements behind these two
GZIP_LEVEL = 4
DIGEST_BYTES = 16
# A set's labels lie in one or two small chunks, so that reading them costs little beside its tokens.
_PART_CHUNKS = {"documents/labels": 1 << 14}
_CHUNK_ENTRIES = 1 << 16
USER_BLOCK_BYTES = 512
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def user_block(sha256: str) -> bytes:
    """What stands before the HDF5 part of the file: who wrote it and the checksum of all that follows."""
    text = f"{FORMAT} {FORMAT_VERSION}\nsha256 of all bytes from {USER_BLOCK_BYTES} on: {sha256}"
    return text.encode("ascii").ljust(USER_BLOCK_BYTES - 1) + b"\n"


def checksum_of_user_block(block: bytes) -> str | None:
    """The checksum that `block` states, or None unless it is a user block to the last bit."""
    sha256 = block.rstrip().rpartition(b" ")[2].decode("ascii", "replace")
    return sha256 if block == user_block_or_none(sha256) else None


def user_block_or_none(sha256: str) -> bytes | None:
    return user_block(sha256) if len(sha256) == 64 and set(sha256) <= set("0123456789abcdef") else None


def content_checksum(path: Path) -> str:
    """sha256 of all bytes after the user block."""
    with path.open("rb") as file:
        file.seek(USER_BLOCK_BYTES)
        return hashlib.file_digest(file, "sha256").hexdigest()


def document_digest(text: str) -> bytes:
    """By which a document of the same text is known again."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=DIGEST_BYTES).digest()


def source_fingerprints(digests: np.ndarray, sources: np.ndarray, num_sources: int) -> list[str]:
    """sha256 of the texts that each source gave, in whatever order.

    `digests` is uint8 (documents, 16), `sources` (documents,) the number of each document's source.
    """
    high, low = digests.view(">u8").T
    order = np.lexsort((low, high, sources))
    bounds = np.searchsorted(sources[order], np.arange(num_sources + 1))
    given = (digests[order[start:stop]] for start, stop in pairwise(bounds))
    return [hashlib.sha256(part.tobytes()).hexdigest() for part in given]


def part_checksum(part: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(part).data).hexdigest()


def index_checksum(header: dict[str, Any], part_checksums: dict[str, str]) -> str:
    """sha256 over the file's attributes and the checksums of all parts."""
    listed = [{name: header[name] for name in HEADER}, {name: part_checksums[name] for name in PARTS}]
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def pack_lines(lines: Iterable[str]) -> bytes:
    """UTF-8 bytes, a line an entry. Raises ValueError for an entry that is no single line."""
    lines = list(lines)
    packed = "\n".join([*lines, ""])
    if packed.count("\n") != len(lines):
        raise ValueError("an id or title holds a line break")
    return packed.encode("utf-8")


def unpack_lines(packed: np.ndarray) -> list[str]:
    """The entries of `pack_lines`. Raises ValueError for bytes that it does not write."""
    text = packed.tobytes().decode("utf-8")
    if text and not text.endswith("\n"):
        raise ValueError("a list of lines is cut off")
    return text.split("\n")[:-1]


def create_tokens(file: h5py.File) -> h5py.Dataset:
    return file.create_dataset(
        TOKENS, (0,), TOKEN_TYPE, maxshape=(None,), chunks=(CHUNK_TOKENS,), compression=GZIP_LEVEL, shuffle=True
    )


def create_part(file: h5py.File, name: str, part: np.ndarray) -> None:
    """Write one part with its checksum."""
    chunk = max(1, min(part.size, _PART_CHUNKS.get(name, _CHUNK_ENTRIES)))
    shape = {"maxshape": (None,), "chunks": (chunk,), "compression": GZIP_LEVEL, "shuffle": True}
    created = file.create_dataset(name, data=part, dtype=PARTS[name], **shape)
    created.attrs["sha256"] = to_attribute(part_checksum(part))


def to_attribute(value: int | str) -> Any:
    """Text as bytes of fixed length: one flipped bit in HDF5's heap for the others can make the library loop."""
    return np.bytes_(value.encode("utf-8")) if isinstance(value, str) else np.int64(value)


def read_attribute(thing: h5py.File | h5py.Dataset, name: str) -> Any:
    value = thing.attrs[name]
    return value.decode("utf-8") if isinstance(value, bytes) else value.item()


def find_part(file: h5py.File, name: str) -> h5py.Dataset:
    """Raises KeyError, ValueError when it is missing or of another type."""
    part = file[name]
    if not isinstance(part, h5py.Dataset) or part.dtype != PARTS[name] or part.ndim != 1:
        raise ValueError(f"{name} is not a list of {PARTS[name].name}")
    return part


def read_part(file: h5py.File, name: str) -> np.ndarray:
    """A part, compared with its checksum. Raises KeyError, ValueError."""
    part = find_part(file, name)
    content = part[:]
    if part_checksum(content) != read_attribute(part, "sha256"):
        raise ValueError(f"{name} does not fit its checksum")
    return content
