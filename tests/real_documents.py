"""Stores of real documents under the real Qwen vocabulary, out of the data folder; never copied into the repository."""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from megatron_spell.data.build import build_store
from megatron_spell.data.settings import BuildSettings
from megatron_spell.text.tokenizer import Tokenizer
from tests.tiny_tokenizer import CHAT_TEMPLATE, SPECIAL

DATA = Path(os.environ.get("MEGATRON_SPELL_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
QWEN = DATA / "fixture_tokenizers" / "qwen" / "qwen.tiktoken"
# How Qwen2 and its successors cut text before byte pairs are merged (tokenizer.json of Qwen/Qwen2.5-7B-Instruct).
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_qwen_tokenizer(folder: Path) -> Path:
    """A folder with Qwen's 151,643 entries and three special tokens as a fast tokenizer. Skips where it is absent."""
    if not QWEN.exists():
        pytest.skip(f"{QWEN} is not there; set MEGATRON_SPELL_DATA")
    pytest.importorskip("tiktoken")
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    backend = TikTokenConverter(str(QWEN), pattern=QWEN_PATTERN, extra_special_tokens=list(SPECIAL)).converted()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return folder


def real_store(name: str, tokenizer: Tokenizer, folder: Path, num_chars: int, **settings) -> Path:
    """A store of the first `num_chars` characters of the data folder `name`. Skips where it is absent."""
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there; set MEGATRON_SPELL_DATA")
    source, taken = folder / f"{name}.jsonl", 0
    with source.open("w", encoding="utf-8") as file:
        for number, text in enumerate(_TEXTS[name](DATA / name)):
            file.write(json.dumps({"id": number, "text": text[: num_chars - taken]}) + "\n")
            taken += len(text)
            if taken >= num_chars:
                break
    return build_store([str(source)], tokenizer, folder / f"{name}.h5", BuildSettings(**settings)).path


def _lines(path: Path, field: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line)[field] for line in file)


def _tatqa(folder: Path) -> Iterator[str]:
    """A table, a line a row, and the paragraphs about it."""
    for one in (one for file in sorted(folder.glob("*.json")) for one in json.loads(file.read_text(encoding="utf-8"))):
        rows = [" | ".join(cells) for cells in one["table"]["table"]]
        yield "\n".join([*rows, *(paragraph["text"] for paragraph in one["paragraphs"])])


_TEXTS = {
    "peps": lambda folder: _lines(folder / "peps.jsonl", "text"),
    "gutenberg_books": lambda folder: islice(_lines(folder / "books.jsonl", "text"), 4),
    "factbook": lambda folder: _lines(folder / "countries.jsonl", "text"),
    "squality": lambda folder: _lines(folder / "train.jsonl", "document"),
    "tatqa": _tatqa,
}
