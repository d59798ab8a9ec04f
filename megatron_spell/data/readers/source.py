"""Documents out of files, folders and the interpreter's own language reference, one at a time."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from megatron_spell.data.clean import normalise, one_line
from megatron_spell.data.documents import Fault, RawDocument, Unit
from megatron_spell.data.errors import SourceError
from megatron_spell.data.readers.columns import DATASET_DICT, DATASET_FILES, dataset_files
from megatron_spell.data.readers.slices import ReadOptions, Slice
from megatron_spell.data.readers.table import KNOWN, READERS, ending
from megatron_spell.data.sections import cut
from megatron_spell.data.topics import topic_sections

PYTHON_TOPICS = "python-topics"
_GIVE = f"{PYTHON_TOPICS}, or a folder or file of {KNOWN}"


def read_source(source: str, max_chars: int | None = None, options: ReadOptions | None = None) -> Iterator[Unit]:
    """The documents of `source` in a fixed order, read while they are asked for.

    `source` is "python-topics", or the path of a file of a known kind (readers/table.py), or of a folder, which is
    searched for such files (hidden ones left out). With `max_chars` longer texts become several documents of one
    group; the language reference is always cut, sets that stand as they are never. Raises SourceError, one line, when
    the documents are asked for.
    """
    for piece in find_slices(source):
        for unit in read_slice(piece, max_chars, options or ReadOptions()):
            if isinstance(unit, Fault):
                raise SourceError(unit.message)
            yield unit


def find_slices(source: str) -> Iterator[Slice]:
    """The stretches of `source`, in order, that can be read apart from each other. Raises SourceError."""
    if source == PYTHON_TOPICS:
        yield Slice(PYTHON_TOPICS, f"{PYTHON_TOPICS} of {sys.version.split()[0]}", PYTHON_TOPICS)
        return
    for path, name in _files(source):
        kind = ending(path.name)
        yield from READERS[kind].cut(kind, path, name)


def read_slice(piece: Slice, max_chars: int | None, options: ReadOptions) -> Iterator[Unit | Fault]:
    """The documents of one stretch; a Fault in the place of each record or file that cannot be read."""
    if piece.kind == PYTHON_TOPICS:
        for topic, number, text in topic_sections(max_chars):
            group = f"{PYTHON_TOPICS}/{topic}"
            yield RawDocument(f"{group}/{number}", f"{topic} {number}", text, group)
        return
    for unit in READERS[piece.kind].read(piece, options):
        if isinstance(unit, RawDocument):
            yield from _sections(unit, max_chars)
        else:
            yield unit


def _files(source: str) -> Iterator[tuple[Path, str]]:
    """(path, name for ids) of every file, sorted by name."""
    root = Path(source)
    if not source.strip() or not _is_there(root):
        raise SourceError(f"source {source!r} is not there; give {_GIVE}")
    if not root.is_dir():
        kind = ending(root.name)
        if not kind:
            raise SourceError(f"source {source!r} has the unknown suffix {root.suffix!r}; give {_GIVE}")
        yield _regular(root), printable(root.name[: -len(kind)])
        return
    found = sorted(_walk(root))
    if not found:
        raise SourceError(f"folder {source!r} holds no file of a known kind; give {_GIVE}")
    for relative in found:
        name = f"{root.resolve().name}/{relative[: -len(ending(relative))]}"
        yield _regular(root / relative), printable(name)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a folder without permission, a name that no file can have
        return False


def _regular(path: Path) -> Path:
    if not path.is_file():
        raise SourceError(f"{path} is no regular file, or a link to nothing; leave it out")
    return path


def _walk(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise SourceError(f"folder {error.filename!r} cannot be read: {error.strerror}; give it read permission")

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if set(names) >= DATASET_FILES:
            names = dataset_files(Path(folder))
        for name in names:
            if not name.startswith(".") and ending(name) and name != DATASET_DICT:
                yield Path(folder, name).relative_to(root).as_posix()


def printable(path: str) -> str:
    """A path as one line of text; bytes of it that are not UTF-8 are spelled out."""
    return one_line(os.fsencode(path).decode("utf-8", "backslashreplace"))


def _sections(whole: RawDocument, max_chars: int | None) -> Iterator[RawDocument]:
    pieces = [whole.text] if max_chars is None else cut(normalise(whole.text), max_chars)
    if len(pieces) == 1:
        yield replace(whole, text=pieces[0])
        return
    for number, text in enumerate(pieces, start=1):
        yield replace(whole, doc_id=f"{whole.doc_id}/{number}", title=f"{whole.title} {number}", text=text)
