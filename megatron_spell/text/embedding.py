"""A sentence-embedding model read from a local folder, for grouping documents by what they are about."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_BATCH = 16  # texts that the model reads at a time


class EmbeddingError(ValueError):
    """A folder holds no usable embedding model; the message says why."""


class TextEmbedder:
    """A model in the form of sentence-transformers (modules.json), or a plain encoder, whose states are averaged.

    The library does the pooling that the folder states (mean, first or last token), normalises, and cuts texts to what
    the model reads. One model gives one machine the same vectors; another machine may differ in the last bits.
    """

    def __init__(self, model: Any, fingerprint: str) -> None:
        self._model = model
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, folder: Path) -> "TextEmbedder":
        """Read the model from its files only, without any code it brings. Raises EmbeddingError."""
        folder = Path(folder)
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise EmbeddingError("is no folder of a model: it has neither modules.json nor config.json")
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise EmbeddingError("needs sentence-transformers; pip install 'megatron-spell[data]'") from None
        try:
            model = SentenceTransformer(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the library raises many kinds for files that are missing or broken
            reason = str(error).strip().split("\n")[0]
            raise EmbeddingError(f"holds no embedding model that can be read: {reason}") from None
        return cls(model, _fingerprint(folder))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, components]."""
        vectors = self._model.encode(list(texts), batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32)


def _fingerprint(folder: Path) -> str:
    """16 hexadecimal digits of all files' names and contents."""
    hashed = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        hashed.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            hashed.update(hashlib.file_digest(file, "blake2b").digest())
    return hashed.hexdigest()
