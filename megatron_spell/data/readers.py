"""Documents out of files and out of the interpreter's own language reference, one at a time."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from megatron_spell.data.clean import normalise, one_line
from megatron_spell.data.documents import RawDocument
from megatron_spell.data.errors import SourceError
from megatron_spell.data.sections import cut
from megatron_spell.data.topics import topic_sections

PYTHON_TOPICS = "python-topics"
_TEXT_SUFFIXES = (".txt", ".md")
_JSONL_SUFFIX = ".jsonl"
_KNOWN = f"{PYTHON_TOPICS}, or a folder or file of .txt, .md or .jsonl"


def read_source(source: str, max_chars: int | None = None) -> Iterator[RawDocument]:
    """The documents of `source` in a fixed order, read while they are asked for.

    `source` is "python-topics", or the path of a .txt, .md or .jsonl file (a JSON object with `text`, and `title` and
    `id` where there are any, on every line), or of a folder, which is searched for such files (hidden ones left out).
    With `max_chars` longer texts become several documents of one group; the language reference is always cut.
    Raises SourceError, one line, when the documents are asked for.
    """
    if source == PYTHON_TOPICS:
        for topic, number, text in topic_sections(max_chars):
            group = f"{PYTHON_TOPICS}/{topic}"
            yield RawDocument(f"{group}/{number}", f"{topic} {number}", text, group)
        return
    for path, name in _files(source):
        for whole in _READERS[path.suffix.lower()](path, name):
            yield from _sections(whole, max_chars)


def _files(source: str) -> Iterator[tuple[Path, str]]:
    """(path, name for ids) of every file, sorted by name."""
    root = Path(source)
    if not source.strip() or not _is_there(root):
        raise SourceError(f"source {source!r} is not there; give {_KNOWN}")
    if not root.is_dir():
        if root.suffix.lower() not in _READERS:
            raise SourceError(f"source {source!r} has the unknown suffix {root.suffix!r}; give {_KNOWN}")
        yield _regular(root), printable(root.stem)
        return
    found = sorted(_walk(root))
    if not found:
        raise SourceError(f"folder {source!r} holds no .txt, .md or .jsonl file; give {_KNOWN}")
    for relative in found:
        name = f"{root.resolve().name}/{Path(relative).with_suffix('').as_posix()}"
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
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in _READERS:
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
        yield RawDocument(f"{whole.doc_id}/{number}", f"{whole.title} {number}", text, whole.group)


def _read_text(path: Path, name: str) -> Iterator[RawDocument]:
    text = _decode(_read_bytes(path), path, "")
    yield RawDocument(name, name.rsplit("/", 1)[-1], text, name)


def _read_jsonl(path: Path, name: str) -> Iterator[RawDocument]:
    for number, line in enumerate(_lines(path), start=1):
        text = _decode(line, path, f" line {number}")
        if text.strip():
            yield _document(_record(text, path, number), path, name, number)


def _document(record: dict, path: Path, name: str, number: int) -> RawDocument:
    text = record.get("text")
    if not isinstance(text, str):
        raise SourceError(f"{path} line {number}: has no field 'text' with a string; every line needs one")
    own_id = _label(record.get("id")) or str(number)
    return RawDocument(f"{name}/{own_id}", _label(record.get("title")) or own_id, text, f"{name}/{own_id}")


def _label(value: object) -> str:
    """A record's id or title as one line; empty when there is none of use."""
    return one_line(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def _record(line: str, path: Path, number: int) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise SourceError(f"{path} line {number}: is not JSON ({why}); write one JSON object a line") from None
    if not isinstance(record, dict):
        raise SourceError(f'{path} line {number}: is not a JSON object; write one like {{"text": "..."}}')
    return record


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise _unreadable(path, error) from None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> SourceError:
    return SourceError(f"{path} cannot be read: {error.strerror}; give it read permission or leave it out")


def _decode(raw: bytes, path: Path, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}{where}: byte {error.start} is not UTF-8; convert the file, for instance with iconv -t UTF-8"
        ) from None


_READERS: dict[str, Callable[[Path, str], Iterator[RawDocument]]] = {
    **dict.fromkeys(_TEXT_SUFFIXES, _read_text),
    _JSONL_SUFFIX: _read_jsonl,
}
