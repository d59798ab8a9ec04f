"""The run's tokenizer, with two ways in: one that knows special tokens and one that spells them out."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class TokenizerError(ValueError):
    """A folder holds no usable tokenizer; the message names the folder and the fault."""


class Tokenizer:
    """A Hugging Face fast tokenizer read from local files.

    Special tokens are those that the tokenizer itself marks so (`special: true` of tokenizer.json). No method adds any.
    """

    def __init__(self, pretrained: Any, stop_ids: tuple[int, ...], source: str) -> None:
        """`pretrained` is a transformers fast tokenizer, `source` names it in messages. Raises TokenizerError."""
        from tokenizers import Tokenizer as Backend

        self.pretrained = pretrained
        self.stop_ids = stop_ids
        definition = json.loads(pretrained.backend_tokenizer.to_str())
        # what a folder says about cutting and padding would silently shorten or lengthen every encoding
        definition |= {"truncation": None, "padding": None}
        self._literal = Backend.from_str(json.dumps(definition))
        self._quoted = Backend.from_str(json.dumps(definition))
        self._quoted.encode_special_tokens = True
        added = self._literal.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.vocab_size = 1 + max(self._literal.get_vocab(with_added_tokens=True).values())
        # truncation and padding do not define ids; the added tokens and every stage of the pipeline do
        self.fingerprint = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
        self._check_spelling(added, source)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read the tokenizer of a model folder, from its files only. Raises TokenizerError."""
        folder = Path(folder)
        if not folder.is_dir():
            raise TokenizerError(f"{folder} is not a folder")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        try:
            pretrained = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds for files that are missing or broken
            reason = str(error).strip().split("\n")[0]
            raise TokenizerError(f"{folder} holds no tokenizer that can be read: {reason}") from None
        if not pretrained.is_fast:
            raise TokenizerError(f"{folder} holds a slow tokenizer; convert it to tokenizer.json first")
        return cls(pretrained, _stop_ids(folder, pretrained), str(folder))

    def encode_literal(self, text: str) -> np.ndarray:
        """int32 ids of `text`, in which special tokens stand for themselves."""
        return _ids(self._literal, text)

    def encode_quoted(self, text: str) -> np.ndarray:
        """int32 ids of `text`, in which special tokens are only characters: no id of `special_ids` comes out."""
        return _ids(self._quoted, text)

    def encode_quoted_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """What `encode_quoted` gives for each text. Python runs meanwhile: threads may call it side by side."""
        encodings = self._quoted.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids; special tokens are left out, ids beyond the vocabulary too."""
        kept = [int(i) for i in token_ids if int(i) not in self.special_ids and 0 <= int(i) < self.vocab_size]
        return self._literal.decode(kept, skip_special_tokens=False)

    def _check_spelling(self, added: dict[int, Any], source: str) -> None:
        for index in sorted(self.special_ids):
            text = added[index].content
            if self.special_ids.intersection(self.encode_quoted(text).tolist()):
                raise TokenizerError(f"{source}: special token {text!r} cannot be spelled out as plain text")


def _ids(backend: Any, text: str) -> np.ndarray:
    return np.asarray(backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)


def _stop_ids(folder: Path, pretrained: Any) -> tuple[int, ...]:
    """Ids that end a turn: eos of generation_config.json, then the tokenizer's own, each once."""
    path = folder / "generation_config.json"
    stated: Any = None
    if path.exists():
        try:
            stated = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise TokenizerError(f"{path} cannot be read: {error}") from None
    listed = stated if isinstance(stated, list) else [stated]
    stops = tuple(dict.fromkeys(int(i) for i in (*listed, pretrained.eos_token_id) if i is not None))
    if not stops:
        raise TokenizerError(f"{folder} names no end-of-text token in generation_config.json or its tokenizer")
    return stops
