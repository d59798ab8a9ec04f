"""A tokenizer read from a folder or file, with what its entries stand for."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokenizer_tools.byte_alphabet import read_bytes
from tokenizer_tools.convert import is_tiktoken_file
from tokenizer_tools.errors import TokenizerFileError, first_line
from tokenizer_tools.sentencepiece_hf import sentencepiece_tokenizer
from tokenizer_tools.sentencepiece_model import load_model


@dataclass(frozen=True)
class HfTokenizer:
    """`definition` is the parsed tokenizer.json; `folder` is None for a file that stands alone."""

    source: Path
    backend: Tokenizer
    definition: dict[str, Any]
    folder: Path | None

    @cached_property
    def entries(self) -> dict[int, str]:
        """Id to entry, added tokens among them."""
        return {index: entry for entry, index in self.backend.get_vocab(with_added_tokens=True).items()}

    @cached_property
    def added(self) -> dict[int, Any]:
        return self.backend.get_added_tokens_decoder()

    @property
    def model_type(self) -> str:
        return self.definition["model"].get("type", "BPE")

    @cached_property
    def is_byte_level(self) -> bool:
        return any(stage.get("type") == "ByteLevel" for stage in stages(self.definition.get("decoder")))

    @property
    def has_byte_fallback(self) -> bool:
        return bool(self.definition["model"].get("byte_fallback"))

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Ids that stand for less than a whole character: byte pieces, or cut UTF-8 in a byte-level vocabulary."""
        plain = {index: entry for index, entry in self.entries.items() if index not in self.added}
        if self.is_byte_level:
            return frozenset(index for index, entry in plain.items() if not _is_text(read_bytes(entry)))
        return frozenset(index for index, entry in plain.items() if is_byte_piece(entry))

    @cached_property
    def unknown_id(self) -> int | None:
        model = self.definition["model"]
        unknown = model.get("unk_token")
        return self.backend.token_to_id(unknown) if unknown else model.get("unk_id")

    def encode(self, text: str) -> list[int]:
        """Ids of the text, in which special tokens are only characters."""
        return self.backend.encode(text, add_special_tokens=False).ids


def load_tokenizer(path: Path) -> HfTokenizer:
    """Read a folder with tokenizer.json, such a file, or a sentencepiece model that has an equal.

    Raises TokenizerFileError or ConversionError.
    """
    if path.is_dir():
        file, folder = path / "tokenizer.json", path
        if not file.is_file() and (path / "tokenizer.model").is_file():
            return load_tokenizer(path / "tokenizer.model")
        if not file.is_file():
            raise TokenizerFileError(f"{path} holds no tokenizer.json; `tokenizer-tools convert` makes one")
    else:
        file, folder = path, None
    if not file.is_file():
        raise TokenizerFileError(f"{file} does not exist")
    if file.suffix == ".json":
        backend = _read_json(file)
    elif is_tiktoken_file(file):
        raise TokenizerFileError(f"{file} is a tiktoken file; `tokenizer-tools convert` gives it a pattern first")
    else:
        backend = sentencepiece_tokenizer(load_model(file), file)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return HfTokenizer(path, backend, json.loads(backend.to_str()), folder)


def _read_json(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerFileError(f"{file} is no tokenizer.json that can be read: {first_line(error)}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file, empty where there is no file. Raises TokenizerFileError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TokenizerFileError(f"{path} cannot be read as JSON: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise TokenizerFileError(f"{path} holds no JSON object")
    return content


def stages(stage: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A stage of tokenizer.json, or the stages of a sequence of them."""
    if stage is None:
        return
    parts = next((stage[k] for k in ("normalizers", "pretokenizers", "decoders", "processors") if k in stage), None)
    if parts is None:
        yield stage
    else:
        for part in parts:
            yield from stages(part)


def is_byte_piece(entry: str) -> bool:
    """Whether an entry is written <0x00> to <0xFF>."""
    return len(entry) == 6 and entry.startswith("<0x") and entry.endswith(">")


def _is_text(token: bytes | None) -> bool:
    if token is None:
        return True
    try:
        token.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
