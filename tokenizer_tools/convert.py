"""Turn a sentencepiece BPE model into a Hugging Face fast tokenizer that gives the same ids.

Merges are recovered from the scores: sentencepiece joins, again and again, the neighbouring pair whose union is the
best scored piece (leftmost first), which is byte-pair encoding with a merge for every way to cut a piece in two.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6


class ConversionError(ValueError):
    """The model file holds something that has no equal in a Hugging Face fast tokenizer; the message names it."""


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
    Raises ConversionError for a missing file, another algorithm than BPE, or a normalisation other than identity.
    """
    model = load_model(model_file)
    _check_supported(model, model_file)
    own = model.trainer_spec
    special = {
        "unk_token": own.unk_piece,
        "eos_token": eos_token or (own.eos_piece if own.eos_id >= 0 else None),
        "bos_token": bos_token or (own.bos_piece if own.bos_id >= 0 else None),
        "pad_token": pad_token or (own.pad_piece if own.pad_id >= 0 else None),
    }
    pieces = {piece.piece for piece in model.pieces}
    for name, token in special.items():
        if token is not None and token not in pieces:
            raise ConversionError(f"{name} {token!r} is not a piece of {model_file}")
    out_folder.mkdir(parents=True, exist_ok=True)
    fast_tokenizer(model).save(str(out_folder / "tokenizer.json"))
    settings = {name: token for name, token in special.items() if token is not None}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    settings |= {"clean_up_tokenization_spaces": False}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (out_folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return out_folder


def load_model(model_file: Path) -> proto.ModelProto:
    """The parsed model file. Raises ConversionError."""
    model = proto.ModelProto()
    try:
        model.ParseFromString(model_file.read_bytes())
    except FileNotFoundError:
        raise ConversionError(f"{model_file} does not exist") from None
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise ConversionError(f"{model_file} is not a sentencepiece model: {error}") from None
    if not model.pieces:
        raise ConversionError(f"{model_file} is not a sentencepiece model: it holds no pieces")
    return model


def _check_supported(model: proto.ModelProto, model_file: Path) -> None:
    kind = proto.TrainerSpec.ModelType.Name(model.trainer_spec.model_type)
    if kind != "BPE":
        raise ConversionError(f"{model_file} is a {kind.lower()} model; only bpe models can be converted")
    rules = model.normalizer_spec
    if rules.precompiled_charsmap:
        raise ConversionError(f"{model_file} normalises text ({rules.name}); only identity can be converted")
    if rules.remove_extra_whitespaces:
        raise ConversionError(f"{model_file} removes extra blanks; only models that keep them can be converted")
    if not rules.escape_whitespaces or model.trainer_spec.treat_whitespace_as_suffix:
        raise ConversionError(f"{model_file} does not mark blanks before words; such models cannot be converted")
    if rules.add_dummy_prefix and any(piece.type == _USER_DEFINED for piece in model.pieces):
        # a fast tokenizer would put the blank before the text after every such piece, sentencepiece only at the start
        raise ConversionError(f"{model_file} has user-defined pieces and a dummy prefix; train with one of them only")


def fast_tokenizer(model: proto.ModelProto) -> Tokenizer:
    """The tokenizer itself, with ids equal to the position of the piece in the model."""
    vocabulary = {_surface(piece): index for index, piece in enumerate(model.pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=recover_merges(model),
            unk_token=model.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    dummy_prefix = model.normalizer_spec.add_dummy_prefix
    blanks = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), blanks]) if dummy_prefix else blanks
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if dummy_prefix else steps)
    _add_found_first(tokenizer, model)
    return tokenizer


def _add_found_first(tokenizer: Tokenizer, model: proto.ModelProto) -> None:
    """Control and user-defined pieces are cut out of the text before the merges see it."""
    plain = [p for p in model.pieces if p.type == _USER_DEFINED]
    special = [p for p in model.pieces if p.type in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(_surface(p), special=True, normalized=False) for p in special])
    tokenizer.add_tokens([AddedToken(_surface(p), special=False, normalized=False) for p in plain])


def _surface(piece: proto.ModelProto.SentencePiece) -> str:
    """A user-defined piece is compared with raw text, where a blank is a blank."""
    return piece.piece.replace(SPACE, " ") if piece.type == _USER_DEFINED else piece.piece


def recover_merges(model: proto.ModelProto) -> list[tuple[str, str]]:
    """Every way to cut a piece into two pieces, best scored union first."""
    rank = {p.piece: (-p.score, index) for index, p in enumerate(model.pieces) if p.type == _NORMAL}
    pairs: list[tuple[tuple[float, int], str, str]] = []
    for piece, place in rank.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in rank and right in rank:
                pairs.append((place, left, right))
    # among cuts of one piece the order is free; the longest left part first keeps files stable
    pairs.sort(key=lambda pair: (pair[0], -len(pair[1])))
    return [(left, right) for _, left, right in pairs]


def special_pieces(model: proto.ModelProto) -> Sequence[str]:
    """The control pieces and the unknown piece, in order of id."""
    return [p.piece for p in model.pieces if p.type in (_UNKNOWN, _CONTROL)]
