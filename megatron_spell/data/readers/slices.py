"""Stretches of sources that can be read on their own, and the options all readers share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_spell.data.documents import Fault, Unit
from megatron_spell.data.errors import SourceError

SLICE_BYTES = 16 * 2**20  # files that can be entered in the middle are cut into stretches of about this size


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """`text_fields` are tried in turn in every record; `quality_field` holds a number where there is one."""

    text_fields: tuple[str, ...] = ("text",)
    quality_field: str = "quality"


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of one file: bytes, row groups or record batches `start` to `stop`, by the reader of `kind`.

    `name` begins the ids of its documents; `first` is the number of its first record, from 1.
    """

    kind: str
    path: str
    name: str
    start: int = 0
    stop: int = 0
    first: int = 1
    num_bytes: int = 0
    modified_ns: int = 0


@dataclass(frozen=True, slots=True)
class Reader:
    """How files of one kind are cut into slices (cheap, in the main process) and read (anywhere, as a stream)."""

    cut: Callable[[str, Path, str], Iterator[Slice]]
    read: Callable[[Slice, ReadOptions], Iterator[Unit | Fault]]


def whole_file(kind: str, path: Path, name: str) -> Iterator[Slice]:
    """The one slice of a file that cannot be entered in the middle."""
    size, modified_ns = size_and_time(path)
    yield Slice(kind, str(path), name, 0, size, num_bytes=size, modified_ns=modified_ns)


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change in nanoseconds. Raises SourceError."""
    try:
        stat = path.stat()
    except OSError as error:
        raise SourceError(unreadable(path, error)) from None
    return stat.st_size, stat.st_mtime_ns


def unreadable(path: Path | str, error: OSError) -> str:
    why = error.strerror or " ".join(str(error).split())[:120]
    return f"{path} cannot be read: {why}; give it read permission, write it anew, or leave it out"


def missing_library(path: Path | str, library: str) -> SourceError:
    return SourceError(f"{path}: reading it needs {library}; pip install 'megatron-spell[data]'")
