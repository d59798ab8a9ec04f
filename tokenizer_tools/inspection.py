"""What a tokenizer is: kind, special tokens, stages, digits, longest tokens, ids without a token, padding."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizer_tools.byte_alphabet import read_bytes
from tokenizer_tools.convert import is_tiktoken_file
from tokenizer_tools.errors import TokenizerFileError
from tokenizer_tools.hf_tokenizer import HfTokenizer, is_byte_piece, load_tokenizer, read_json, stages
from tokenizer_tools.sentencepiece_model import BYTE, load_model, model_kind, special_pieces
from tokenizer_tools.tiktoken_ranks import read_ranks

NUM_LONGEST = 5
PARALLEL = (1, 2, 4, 8, 16)
MEGATRON_MULTIPLE = 128  # Megatron-LM's default of --make-vocab-size-divisible-by
VLLM_MULTIPLE = 64  # vLLM's DEFAULT_VOCAB_PADDING_SIZE
_DIGITS = "1234567890"
_NO_FALLBACK = "none: unknown characters become the unknown token"


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """`vocab_size` counts tokens; `num_ids` is one more than the highest id. `model_vocab_size` is config.json's.

    `padding` gives, for every tensor-parallel size, the rows that this project, Megatron-LM (default multiple) and vLLM
    lay out for `model_vocab_size` (or `num_ids` where there is no config.json).
    """

    source: str
    kind: str
    vocab_size: int
    num_ids: int
    model_vocab_size: int | None
    special_tokens: dict[str, int]
    plain_added_tokens: dict[str, int]
    roles: dict[str, str]
    normalizer: str
    pre_tokenizer: str
    byte_fallback: str
    digits: str
    longest_tokens: tuple[str, ...]
    num_unused_ids: int
    unused_ids: str
    padding: dict[str, dict[str, int]]
    has_chat_template: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_tokenizer(path: Path) -> TokenizerFacts:
    """The facts of a folder, a tokenizer.json, a sentencepiece model or a tiktoken file. Raises ToolError."""
    if path.is_file() and is_tiktoken_file(path):
        return _tiktoken_facts(path)
    if path.is_file() and path.suffix != ".json":
        return _sentencepiece_facts(path)
    return _fast_facts(load_tokenizer(path))


def _fast_facts(tokenizer: HfTokenizer) -> TokenizerFacts:
    config, settings = _settings(tokenizer.folder)
    rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    added = tokenizer.added.items()
    return _facts(
        tokenizer.source,
        _kind(tokenizer),
        tokenizer.entries,
        rows,
        special_tokens={token.content: index for index, token in added if token.special},
        plain_added_tokens={token.content: index for index, token in added if not token.special},
        roles=_roles(settings),
        normalizer=_described(tokenizer.definition.get("normalizer")),
        pre_tokenizer=_described(tokenizer.definition.get("pre_tokenizer")),
        byte_fallback=_fallback(tokenizer),
        digits=_digits(tokenizer.encode(_DIGITS)),
        longest_tokens=_longest({i: _readable(tokenizer, i) for i in tokenizer.entries if i not in tokenizer.added}),
        has_chat_template=bool(settings.get("chat_template")) or _has_template_file(tokenizer.folder),
    )


def _sentencepiece_facts(path: Path) -> TokenizerFacts:
    import sentencepiece

    model = load_model(path)
    own, rules = model.trainer_spec, model.normalizer_spec
    entries = {index: piece.piece for index, piece in enumerate(model.pieces)}
    numbers = {piece: index for index, piece in entries.items()}
    symbols = {p.piece: index for index, p in enumerate(model.pieces) if p.type == 4}
    num_bytes = sum(p.type == BYTE for p in model.pieces)
    named = {"unk": own.unk_piece, "eos": own.eos_piece, "bos": own.bos_piece, "pad": own.pad_piece}
    return _facts(
        path,
        f"sentencepiece {model_kind(model)}",
        entries,
        None,
        special_tokens={piece: numbers[piece] for piece in special_pieces(model)},
        plain_added_tokens=symbols,
        roles={f"{name}_token": piece for name, piece in named.items() if getattr(own, f"{name}_id") >= 0},
        normalizer=_normalisation(rules),
        pre_tokenizer="none",
        byte_fallback=f"{num_bytes} byte pieces"
        if own.byte_fallback
        else "none: unknown characters become the unknown token",
        digits=_digits(sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString()).encode(_DIGITS)),
        longest_tokens=_longest({i: e.replace("\u2581", " ") for i, e in entries.items() if e not in symbols}),
        has_chat_template=False,
    )


def _normalisation(rules: Any) -> str:
    prefix = "with dummy prefix" if rules.add_dummy_prefix else "without dummy prefix"
    blanks = "extra blanks removed" if rules.remove_extra_whitespaces else "extra blanks kept"
    return ", ".join((rules.name or "rules of its own", prefix, blanks))


def _tiktoken_facts(path: Path) -> TokenizerFacts:
    ranks = read_ranks(path)
    entries = {rank: token.decode("utf-8", errors="replace") for token, rank in ranks.items()}
    return _facts(
        path,
        "tiktoken ranks (byte-level BPE)",
        entries,
        None,
        special_tokens={},
        plain_added_tokens={},
        roles={},
        normalizer="not in the file",
        pre_tokenizer="not in the file: `convert --pattern` gives it",
        byte_fallback="every byte is a token",
        digits="not in the file: the pattern says it",
        longest_tokens=_longest(entries),
        has_chat_template=False,
    )


def _facts(source: Path, kind: str, entries: dict[int, str], rows: int | None, **rest: Any) -> TokenizerFacts:
    num_ids = 1 + max(entries)
    unused = sorted(set(range(max(num_ids, rows or 0))) - entries.keys())
    return TokenizerFacts(
        source=str(source),
        kind=kind,
        vocab_size=len(entries),
        num_ids=num_ids,
        model_vocab_size=rows,
        num_unused_ids=len(unused),
        unused_ids=_ranges(unused),
        padding=paddings(rows or num_ids),
        **rest,
    )


def paddings(num_rows: int) -> dict[str, dict[str, int]]:
    """Rows of the embedding for every tensor-parallel size, by who lays it out."""

    def padded(multiple: int) -> int:
        return -(-num_rows // multiple) * multiple

    return {
        str(tp): {
            "megatron_spell": padded(tp),
            "megatron_lm": padded(MEGATRON_MULTIPLE * tp),
            "vllm": padded(VLLM_MULTIPLE),
        }
        for tp in PARALLEL
    }


def _settings(folder: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    if folder is None:
        return {}, {}
    return read_json(folder / "config.json"), read_json(folder / "tokenizer_config.json")


def _has_template_file(folder: Path | None) -> bool:
    return folder is not None and (folder / "chat_template.jinja").is_file()


def _roles(settings: dict[str, Any]) -> dict[str, str]:
    named = {role: settings.get(role) for role in ("unk_token", "bos_token", "eos_token", "pad_token")}
    texts = {role: token.get("content") if isinstance(token, dict) else token for role, token in named.items()}
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _kind(tokenizer: HfTokenizer) -> str:
    return f"byte-level {tokenizer.model_type}" if tokenizer.is_byte_level else tokenizer.model_type


def _fallback(tokenizer: HfTokenizer) -> str:
    if tokenizer.is_byte_level:
        return "every byte is a token"
    num_bytes = sum(is_byte_piece(entry) for entry in tokenizer.entries.values())
    if tokenizer.has_byte_fallback and num_bytes == 256:
        return "256 byte pieces"
    if tokenizer.has_byte_fallback:
        raise TokenizerFileError(f"{tokenizer.source} falls back to bytes but has {num_bytes} of 256 byte pieces")
    return _NO_FALLBACK


def _digits(ids: list[int]) -> str:
    """How ten digits in a row are cut."""
    if len(ids) in (len(_DIGITS), len(_DIGITS) + 1):
        return "one token a digit"
    return f"{len(_DIGITS)} digits in {len(ids)} tokens"


def _described(stage: dict[str, Any] | None) -> str:
    return ", ".join(_stage(one) for one in stages(stage)) or "none"


def _stage(stage: dict[str, Any]) -> str:
    pattern = stage.get("pattern")
    if isinstance(pattern, dict):
        shown = repr(next(iter(pattern.values())))
        return f"{stage['type']} {shown}" + (f" -> {stage['content']!r}" if "content" in stage else "")
    return stage["type"] + (f" {stage['prepend']!r}" if "prepend" in stage else "")


def _readable(tokenizer: HfTokenizer, index: int) -> str:
    entry = tokenizer.entries[index]
    token = read_bytes(entry) if tokenizer.is_byte_level else None
    return entry.replace("\u2581", " ") if token is None else token.decode("utf-8", errors="replace")


def _longest(texts: dict[int, str]) -> tuple[str, ...]:
    return tuple(sorted(texts.values(), key=lambda text: (-len(text), text))[:NUM_LONGEST])


def _ranges(numbers: list[int]) -> str:
    """Such as "3, 7-9"; the first ten ranges."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:10]]
    return ", ".join(shown + (["..."] if len(ranges) > 10 else []))
