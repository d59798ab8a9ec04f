r"""How tiktoken vocabularies cut text before byte pairs are merged, and their special tokens.

tiktoken reads a pattern with Rust's fancy-regex, a tokenizer.json with Oniguruma. `demand_same_meaning` refuses what
the two read differently. Sources: tiktoken 0.14 `tiktoken_ext/openai_public.py`; tokenizer.json and
tokenizer_config.json of Qwen/Qwen2.5-7B-Instruct and Qwen/Qwen3-4B.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizer_tools.errors import ConversionError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTIONS + "?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTIONS + "?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    _TAIL,
)
PATTERNS = {
    "qwen": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL,
    # tiktoken writes it with possessive repeats and `\s++$`, for speed; the pieces are the same
    "cl100k": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL,
    "o200k": "|".join(_O200K),
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """`id` None means the next free one. A token that is not `special` is found in text, but decoding keeps it."""

    text: str
    id: int | None = None
    special: bool = True


def _sequence(special: Sequence[str], plain: Sequence[str] = ()) -> tuple[SpecialToken, ...]:
    return (*(SpecialToken(text) for text in special), *(SpecialToken(text, special=False) for text in plain))


def _numbered(tokens: Mapping[str, int]) -> tuple[SpecialToken, ...]:
    return tuple(SpecialToken(text, number) for text, number in tokens.items())


_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN25 = (
    *_QWEN,
    *(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad", "vision") for end in ("start", "end")),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_QWEN25_PLAIN = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
_QWEN3_PLAIN = (*_QWEN25_PLAIN, "<tool_response>", "</tool_response>", "<think>", "</think>")
_CL100K = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}
SPECIAL_SETS: dict[str, tuple[SpecialToken, ...]] = {
    "none": (),
    "qwen": _sequence(_QWEN),
    "qwen2.5": _sequence(_QWEN25, _QWEN25_PLAIN),
    "qwen3": _sequence(_QWEN25, _QWEN3_PLAIN),
    "cl100k": _numbered(_CL100K),
    "o200k": _numbered({"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    "gpt2": _numbered({"<|endoftext|>": 50256}),
}

_CLASS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
_FORBIDDEN = (
    (
        re.compile(r"(?<!\\)[\^$]"),
        "^ and $ mean ends of lines in the one and of the text in the other; write (?!\\S) or \\z",
    ),
    (re.compile(r"\{\d*,?\d*\}\+"), "{n,m}+ is possessive in the one and repeats in the other; leave out the +"),
    (re.compile(r"\(\?[a-z]*[msx]"), "the flags m, s and x differ"),
    (re.compile(r"\\[bBhHGKRXZwW]"), "this escape means different characters"),
    (re.compile(r"\\\d|\(\?P|\(\?<[^=!]|\\k"), "groups that are referred to are numbered differently"),
    (re.compile(r"(?<!\\)\."), "a dot stops at different line ends; write [^\\r\\n]"),
)


def demand_same_meaning(pattern: str) -> None:
    """Refuse a pattern that the two libraries read differently. Raises ConversionError with the reason."""
    bare = _CLASS.sub(lambda found: found[0] if found[0][0] == "\\" else "C", pattern)
    for fault, reason in _FORBIDDEN:
        if found := fault.search(bare):
            raise ConversionError(f"pattern holds {found[0]!r}: {reason}")
    if re.search(r"\[[^\]]*(\[|&&|--|~~)", pattern):
        raise ConversionError("pattern holds a class within a class, which the two libraries read differently")
