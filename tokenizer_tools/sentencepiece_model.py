"""A sentencepiece model file: what it holds, and what of it a Hugging Face fast tokenizer has no equal for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from sentencepiece import sentencepiece_model_pb2

from tokenizer_tools.errors import ConversionError
from tokenizer_tools.sentencepiece_ties import disagreement

proto: Any = sentencepiece_model_pb2
# protobuf makes these classes when the module is loaded, where no type checker sees them
ModelProto: TypeAlias = Any
PieceProto: TypeAlias = Any
NormalizerSpec: TypeAlias = Any

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def load_model(model_file: Path) -> ModelProto:
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


def model_kind(model: ModelProto) -> str:
    """ "bpe", "unigram", "word" or "char"."""
    return proto.TrainerSpec.ModelType.Name(model.trainer_spec.model_type).lower()


def special_pieces(model: ModelProto) -> Sequence[str]:
    """The control pieces and the unknown piece, in order of id."""
    return [p.piece for p in model.pieces if p.type in (UNKNOWN, CONTROL)]


def demand_convertible(model: ModelProto, model_file: Path) -> None:
    """Refuse what has no equal, whatever the normalisation. Raises ConversionError with the reason."""
    kind, rules = model_kind(model), model.normalizer_spec
    if kind not in ("bpe", "unigram"):
        raise ConversionError(f"{model_file} is a {kind} model; only bpe and unigram models can be converted")
    if not rules.escape_whitespaces or model.trainer_spec.treat_whitespace_as_suffix:
        raise ConversionError(f"{model_file} does not mark blanks before words; such models cannot be converted")
    if any(piece.type == UNUSED for piece in model.pieces):
        raise ConversionError(
            f"{model_file} has unused pieces, which are cut up again; a fast tokenizer does not do so"
        )
    has_symbols = any(piece.type == USER_DEFINED for piece in model.pieces)
    if has_symbols and rules.add_dummy_prefix:
        # a fast tokenizer would put the blank before the text after every such piece, sentencepiece only at the start
        raise ConversionError(f"{model_file} has user-defined pieces and a dummy prefix; train with one of them only")
    if has_symbols and rules.remove_extra_whitespaces:
        raise ConversionError(f"{model_file} has user-defined pieces and removes extra blanks; train with one only")
    if kind == "bpe":
        _demand_ranked(model, model_file)
    else:
        _demand_reachable(model, model_file, has_symbols)


def _demand_ranked(model: ModelProto, model_file: Path) -> None:
    """A fast tokenizer joins pieces only, one rank after the other."""
    pieces = {p.piece for p in model.pieces}
    joined = [p for p in model.pieces if p.type == NORMAL and len(p.piece) > 1]
    for piece in joined:
        lacking = [c for c in piece.piece if c not in pieces]
        if lacking:
            raise ConversionError(f"{model_file}: {lacking[0]!r} of piece {piece.piece!r} is no piece by itself")
    if fault := disagreement(joined):
        raise ConversionError(f"{model_file}: {fault}")


def _demand_reachable(model: ModelProto, model_file: Path, has_symbols: bool) -> None:
    """The search of a fast tokenizer goes over all entries, bytes and control pieces too; they must never be best."""
    if has_symbols:
        raise ConversionError(
            f"{model_file}: a unigram model weighs user-defined pieces; a fast tokenizer cuts them out"
        )
    single = {p.piece for p in model.pieces if p.type == NORMAL and len(p.piece) == 1}
    lacking = {c: p.piece for p in model.pieces if p.type == NORMAL for c in p.piece if c not in single}
    lacking |= {c: p.piece for p in model.pieces if p.type == BYTE for c in p.piece if c not in single}
    for character, piece in lacking.items():
        raise ConversionError(
            f"{model_file}: {character!r} of piece {piece!r} is no piece by itself, and where it is unknown a fast "
            "tokenizer would cut otherwise; train with it among the required characters"
        )
