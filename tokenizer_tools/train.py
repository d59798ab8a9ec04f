"""Train a sentencepiece BPE or unigram model whose decoded text is byte for byte what was encoded."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from tokenizer_tools.errors import TrainingError

__all__ = ["KINDS", "TrainingError", "train_sentencepiece"]
KINDS = ("bpe", "unigram")
SPACE = "\u2581"  # how sentencepiece writes a blank
# The search of a converted unigram model goes over byte pieces too; each of their characters must be known by itself.
_OF_BYTE_PIECES = "<0x123456789ABCDEF>"


def train_sentencepiece(
    texts: Iterable[str],
    model_prefix: Path,
    vocab_size: int,
    user_defined_symbols: Sequence[str] = (),
    control_symbols: Sequence[str] = (),
    eos_piece: str = "</s>",
    pad_piece: str | None = None,
    split_digits: bool = True,
    *,
    kind: str = "bpe",
) -> Path:
    """Write `model_prefix`.model and return its path.

    The model is lossless: no normalisation, no dummy prefix, byte fallback. `user_defined_symbols` may hold blanks and
    line ends; each is one piece wherever it stands. `control_symbols`, `eos_piece` and `pad_piece` are control pieces
    that no text encodes to. Ids: 0 unknown, 1 end of text, 2 padding if wanted. Deterministic: one thread, in order.
    `kind` is one of KINDS. Raises TrainingError.
    """
    if kind not in KINDS:
        raise TrainingError(f"kind {kind!r} is unknown; known are {', '.join(KINDS)}")
    model = io.BytesIO()
    lines = (line for text in texts for line in text.split("\n") if line.strip())
    own: dict[str, Any] = {} if kind == "bpe" else {"required_chars": _OF_BYTE_PIECES}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            user_defined_symbols=[symbol.replace(" ", SPACE) for symbol in user_defined_symbols],
            control_symbols=list(control_symbols),
            eos_piece=eos_piece,
            pad_id=-1 if pad_piece is None else 2,
            pad_piece=pad_piece or "<pad>",
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            split_digits=split_digits,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            character_coverage=1.0,
            max_sentence_length=1_000_000,
            num_threads=1,
            minloglevel=2,
            **own,
        )
    except (RuntimeError, OSError) as error:
        raise TrainingError(f"sentencepiece cannot train {vocab_size} pieces on these texts: {error}") from None
    path = model_prefix.with_name(model_prefix.name + ".model")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path
