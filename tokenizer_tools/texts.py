"""Texts to train on and to measure with, out of files, folders and token stores."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizer_tools.errors import TextError, first_line

SUFFIXES = (".txt", ".md", ".jsonl")
STORE_SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True, slots=True)
class KindOfText:
    """A text and the kind it counts under."""

    kind: str
    text: str


def text_files(source: Path) -> list[Path]:
    """The file itself, or all files of SUFFIXES under a folder by name, hidden ones left out. Raises TextError."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise TextError(f"{source} does not exist")
    found = [path for path in sorted(source.rglob("*")) if path.suffix in SUFFIXES and path.is_file()]
    seen = [path for path in found if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    if not seen:
        raise TextError(f"{source} holds no file that ends in {', '.join(SUFFIXES)}")
    return seen


def read_texts(sources: Sequence[Path], field: str = "text") -> Iterator[KindOfText]:
    """Every text of the sources in order. Raises TextError naming file and line.

    A .jsonl file has an object with `field` a line. The kind is the first folder under a given folder, or the file's
    name without ending for a file that lies there directly or was given itself.
    """
    for source in sources:
        for path in text_files(source):
            inside = path.relative_to(source).parts if source.is_dir() else (path.name,)
            kind = inside[0] if len(inside) > 1 else path.stem
            for text in _texts_of(path, field):
                yield KindOfText(kind, text)


def _texts_of(path: Path, field: str) -> Iterator[str]:
    try:
        if path.suffix == ".jsonl":
            yield from _lines(path, field)
        else:
            yield path.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text: byte {error.start} cannot be decoded") from None


def _lines(path: Path, field: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[field]
            except (ValueError, KeyError, TypeError, IndexError):
                text = None
            if not isinstance(text, str):
                raise TextError(f"{path} line {number} is no object with a text {field!r}; name the field with --field")
            yield text


def store_texts(store: Path, tokenizer_folder: Path) -> Iterator[str]:
    """The documents of a token store's training sets as text; held-out sets are left out.

    The tokenizer must be the one that the store was built with. Raises TextError.
    """
    try:
        from megatron_spell.data.store import TokenStore
    except ImportError as error:
        raise TextError(f"{store}: reading a token store needs megatron_spell and h5py ({first_line(error)})") from None
    decode, fingerprint = _decoder(tokenizer_folder)
    try:
        opened = TokenStore.open(store)
    except ValueError as error:  # StoreError
        raise TextError(first_line(error)) from None
    with opened:
        if opened.tokenizer_fingerprint != fingerprint:
            raise TextError(f"{store} was built with another tokenizer than {tokenizer_folder}; give that one")
        for set_id in opened.set_ids("train"):
            for document in opened.document_set(set_id).documents:
                yield decode(document.token_ids_T.tolist())


def _decoder(folder: Path):
    """The function from ids to text, and the fingerprint as stores write it (megatron_spell/text/tokenizer.py)."""
    from transformers import AutoTokenizer

    try:
        pretrained = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        definition = json.loads(pretrained.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    except Exception as error:  # transformers raises many kinds for files that are missing or broken
        raise TextError(f"{folder} holds no tokenizer that can be read: {first_line(error)}") from None
    fingerprint = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
    return lambda ids: pretrained.decode(ids, skip_special_tokens=True), fingerprint
