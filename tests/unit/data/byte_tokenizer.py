"""A tokenizer of UTF-8 bytes, and documents to build stores from."""

from pathlib import Path

import numpy as np

from megatron_spell.data.documents import RawDocument
from megatron_spell.data.settings import BuildSettings

SMALL = BuildSettings(set_size=4, min_chars=10, heldout=0.3)


class ByteTokenizer:
    fingerprint = "b" * 64

    def encode_quoted(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32)

    def encode_quoted_batch(self, texts):
        return [self.encode_quoted(text) for text in texts]


def decode(token_ids: np.ndarray) -> str:
    return token_ids.astype(np.uint8).tobytes().decode("utf-8")


def numbered(num: int, group: str, words: str = "some words that repeat") -> list[RawDocument]:
    return [RawDocument(f"{group}/{n}", f"{group} {n}", f"{words} number {n} of {group}", group) for n in range(num)]


def write_texts(folder: Path, num: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(num):
        (folder / f"text_{n:03}.txt").write_text(f"Text number {n} tells of {'cats' if n % 2 else 'ships'}.\n" * 3)
    return folder
