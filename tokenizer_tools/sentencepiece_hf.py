"""A sentencepiece BPE or unigram model as a Hugging Face fast tokenizer that gives the same ids.

BPE: merges are recovered from the scores. sentencepiece joins, again and again, the neighbouring pair whose union is
the best scored piece (leftmost first), which is byte-pair encoding with a merge for every way to cut a piece in two.
Unigram: both libraries search the best path, sentencepiece in float32 and tokenizers in float64, so that two ways to
cut a text whose scores differ by less than float32 can hold may be told apart differently.
"""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from tokenizer_tools.charsmap import precompiled, replacements
from tokenizer_tools.errors import ConversionError
from tokenizer_tools.sentencepiece_model import (
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    ModelProto,
    NormalizerSpec,
    PieceProto,
    demand_convertible,
    model_kind,
)

# Entries that are no piece of text are in the search of a fast tokenizer too. This keeps them out of every best path
# and leaves float64 ten digits for the scores.
_NEVER_BEST = -1e6


def sentencepiece_tokenizer(model: ModelProto, model_file: Path, *, inexact_normalisation: bool = False) -> Tokenizer:
    """The tokenizer of a model that has an equal, ids being positions of pieces. Raises ConversionError.

    `inexact_normalisation` takes rules that have no equal in the library's own reading (charsmap.py says what differs).
    """
    demand_convertible(model, model_file)
    try:
        return fast_tokenizer(model, inexact_normalisation=inexact_normalisation)
    except ConversionError as error:
        raise ConversionError(f"{model_file}: {error}") from None


def fast_tokenizer(model: ModelProto, *, inexact_normalisation: bool = False) -> Tokenizer:
    """The tokenizer itself, of a model that `demand_convertible` passed."""
    tokenizer = Tokenizer(_bpe(model) if model_kind(model) == "bpe" else _unigram(model))
    dummy_prefix = model.normalizer_spec.add_dummy_prefix
    steps = _normalisation(model.normalizer_spec, inexact_normalisation)
    tokenizer.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
    decode = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decode, decoders.Strip(" ", 1, 0)] if dummy_prefix else decode)
    _add_found_first(tokenizer, model)
    return tokenizer


def _normalisation(rules: NormalizerSpec, inexact: bool) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if rules.precompiled_charsmap and inexact:
        steps.append(precompiled(rules.precompiled_charsmap))
    elif rules.precompiled_charsmap:
        may_delete = rules.remove_extra_whitespaces or not rules.add_dummy_prefix
        steps += replacements(rules.precompiled_charsmap, rules.name, may_delete=may_delete)
    if rules.remove_extra_whitespaces:
        # the mark itself counts as a blank at the end only
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(rf"[ {SPACE}]+\z"), "")]
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def _bpe(model: ModelProto) -> models.BPE:
    return models.BPE(
        vocab={_surface(piece): index for index, piece in enumerate(model.pieces)},
        merges=recover_merges(model),
        unk_token=model.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
    )


def _unigram(model: ModelProto) -> models.Unigram:
    scores = [(p.piece, p.score if p.type == NORMAL else _NEVER_BEST) for p in model.pieces]
    unknown = next(index for index, p in enumerate(model.pieces) if p.type == UNKNOWN)
    return models.Unigram(scores, unknown, model.trainer_spec.byte_fallback)


def _add_found_first(tokenizer: Tokenizer, model: ModelProto) -> None:
    """Control and user-defined pieces are cut out of the text before the model sees it."""
    plain = [p for p in model.pieces if p.type == USER_DEFINED]
    special = [p for p in model.pieces if p.type in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([AddedToken(_surface(p), special=True, normalized=False) for p in special])
    tokenizer.add_tokens([AddedToken(_surface(p), special=False, normalized=False) for p in plain])


def _surface(piece: PieceProto) -> str:
    """A user-defined piece is compared with raw text, where a blank is a blank."""
    return piece.piece.replace(SPACE, " ") if piece.type == USER_DEFINED else piece.piece


def recover_merges(model: ModelProto) -> list[tuple[str, str]]:
    """Every way to cut a piece into two pieces, best scored union first."""
    rank = {p.piece: (-p.score, index) for index, p in enumerate(model.pieces) if p.type == NORMAL}
    pairs: list[tuple[tuple[float, int], str, str]] = []
    for piece, place in rank.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in rank and right in rank:
                pairs.append((place, left, right))
    # only one cut of a piece ever comes up (tiktoken_ranks.py says why); the longest left part first keeps files stable
    pairs.sort(key=lambda pair: (pair[0], -len(pair[1])))
    return [(left, right) for _, left, right in pairs]
