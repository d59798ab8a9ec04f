"""Write the Hugging Face form of a vocabulary: tokenizer.json and tokenizer_config.json with the same ids."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, processors

from tokenizer_tools.errors import ConversionError
from tokenizer_tools.patterns import SPECIAL_SETS, SpecialToken
from tokenizer_tools.sentencepiece_hf import fast_tokenizer, sentencepiece_tokenizer
from tokenizer_tools.sentencepiece_model import load_model
from tokenizer_tools.tiktoken_ranks import fast_tokenizer as tiktoken_tokenizer
from tokenizer_tools.tiktoken_ranks import read_ranks

__all__ = ["ConversionError", "FolderSettings", "fast_tokenizer", "load_model", "sentencepiece_to_hf", "tiktoken_to_hf"]
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_ROLES = ("unk_token", "eos_token", "bos_token", "pad_token")


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """What stands in tokenizer_config.json beside the vocabulary; `max_length` (tokens) is only stated.

    `add_bos` and `add_eos` put the tokens around a text that is encoded with special tokens.
    """

    chat_template: str | None = None
    eos_token: str | None = None
    bos_token: str | None = None
    pad_token: str | None = None
    max_length: int = 4096
    add_bos: bool = False
    add_eos: bool = False


def is_tiktoken_file(path: Path) -> bool:
    """Whether the file begins with a base64 token and its rank."""
    try:
        with path.open("rb") as file:
            return _RANK_LINE.fullmatch(file.readline(4096)) is not None
    except OSError:
        return False


def sentencepiece_to_hf(
    model_file: Path,
    out_folder: Path,
    *,
    chat_template: str | None = None,
    eos_token: str | None = None,
    bos_token: str | None = None,
    pad_token: str | None = None,
    max_length: int = 4096,
) -> Path:
    """Write `out_folder`/tokenizer.json and tokenizer_config.json (and chat_template there); return the folder.

    Control pieces and the unknown piece become special tokens, user-defined pieces plain added tokens (both are found
    in text before anything else). eos, bos and pad default to the model's own. `max_length` is only stated.
    Raises ConversionError for a missing file and for what has no equal in a fast tokenizer.
    """
    settings = FolderSettings(chat_template, eos_token, bos_token, pad_token, max_length)
    return convert_sentencepiece(model_file, out_folder, settings)


def convert_sentencepiece(
    model_file: Path, out_folder: Path, settings: FolderSettings, *, inexact_normalisation: bool = False
) -> Path:
    """As `sentencepiece_to_hf`. Raises ConversionError."""
    model = load_model(model_file)
    tokenizer = sentencepiece_tokenizer(model, model_file, inexact_normalisation=inexact_normalisation)
    own = model.trainer_spec
    roles = {
        "unk_token": own.unk_piece,
        "eos_token": settings.eos_token or (own.eos_piece if own.eos_id >= 0 else None),
        "bos_token": settings.bos_token or (own.bos_piece if own.bos_id >= 0 else None),
        "pad_token": settings.pad_token or (own.pad_piece if own.pad_id >= 0 else None),
    }
    pieces = {piece.piece for piece in model.pieces}
    for name, token in roles.items():
        if token is not None and token not in pieces:
            raise ConversionError(f"{name} {token!r} is not a piece of {model_file}")
    return _write_folder(out_folder, tokenizer, roles, settings)


def tiktoken_to_hf(
    rank_file: Path,
    out_folder: Path,
    pattern: str,
    special: Sequence[SpecialToken] | None = None,
    settings: FolderSettings | None = None,
    *,
    nfc: bool | None = None,
) -> Path:
    """Write the fast tokenizer of a tiktoken file; return the folder. Raises ConversionError.

    `pattern` is a name of PATTERNS or a regular expression. `special` defaults to the pattern's own set, `nfc` (Unicode
    normalisation before anything else) to what models of that name do: Qwen's normalise, the others do not. eos and pad
    default to <|endoftext|> where there is one.
    """
    special = SPECIAL_SETS.get(pattern, ()) if special is None else special
    settings = settings or FolderSettings()
    tokenizer = tiktoken_tokenizer(
        read_ranks(rank_file), pattern, special, nfc=pattern == "qwen" if nfc is None else nfc
    )
    default = next((token.text for token in special if token.text == "<|endoftext|>"), None)
    roles = {
        "unk_token": None,
        "eos_token": settings.eos_token or default,
        "bos_token": settings.bos_token,
        "pad_token": settings.pad_token or default,
    }
    for name, token in roles.items():
        if token is not None and all(token != other.text for other in special):
            raise ConversionError(f"{name} {token!r} is not a special token; give it with --special")
    return _write_folder(out_folder, tokenizer, roles, settings)


def _write_folder(
    out_folder: Path, tokenizer: Tokenizer, roles: dict[str, str | None], settings: FolderSettings
) -> Path:
    _surround(tokenizer, roles, settings)
    out_folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out_folder / "tokenizer.json"))
    stated: dict[str, object] = {name: roles[name] for name in _ROLES if roles[name] is not None}
    stated |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": settings.max_length}
    stated |= {"clean_up_tokenization_spaces": False}
    if settings.chat_template is not None:
        stated["chat_template"] = settings.chat_template
    text = json.dumps(stated, indent=2, ensure_ascii=False) + "\n"
    (out_folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return out_folder


def _surround(tokenizer: Tokenizer, roles: dict[str, str | None], settings: FolderSettings) -> None:
    before = roles["bos_token"] if settings.add_bos else None
    after = roles["eos_token"] if settings.add_eos else None
    if (settings.add_bos and before is None) or (settings.add_eos and after is None):
        raise ConversionError("--add-bos and --add-eos need such a token; name one with --bos or --eos")
    around = [token for token in (before, after) if token is not None]
    if around:
        one = [part for part in (before, "$A", after) if part is not None]
        two = [part for part in (before, "$B", after) if part is not None]
        ids = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(around)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(one), pair=" ".join([*one, *(f"{part}:1" for part in two)]), special_tokens=ids
        )
