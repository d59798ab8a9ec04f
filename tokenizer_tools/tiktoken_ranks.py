"""Turn a tiktoken vocabulary (base64 token and rank a line) into a Hugging Face fast tokenizer with the same ids.

tiktoken joins, again and again, the two neighbours whose union has the lowest rank, leftmost first. Where a token comes
to be in any text, nothing outside it has taken part, so its parts are those that the same steps give for the token
alone: one merge a token says it all. A piece of text that is a token as a whole is that token, in both libraries.
"""

import base64
import binascii
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokenizer_tools.byte_alphabet import spelled
from tokenizer_tools.errors import ConversionError
from tokenizer_tools.patterns import PATTERNS, SpecialToken, demand_same_meaning


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes to rank, of a tiktoken file. Raises ConversionError naming the line."""
    ranks: dict[bytes, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise ConversionError(f"{path} does not exist") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ConversionError(f"{path} line {number} is not a base64 token and its rank") from None
    _demand_whole(ranks, path)
    return ranks


def _demand_whole(ranks: dict[bytes, int], path: Path) -> None:
    if len(set(ranks.values())) != len(ranks) or min(ranks.values(), default=0) < 0:
        raise ConversionError(f"{path} gives two tokens one rank, or a rank below 0")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ConversionError(f"{path} has no rank for {len(missing)} single bytes, such as 0x{missing[0]:02X}")


def recover_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts that every token of two bytes or more is joined from, lowest rank first.

    Tokens that no joining leads to have none; only a piece of text that is the whole token becomes it.
    """
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [at for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
        parts = [token[: cuts[0]], token[cuts[0] :]] if len(cuts) == 1 else _last_two(token, ranks) if cuts else []
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _last_two(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The state of byte-pair encoding of `token` before its last step, or where it stops."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        unions = [ranks.get(left + right) for left, right in pairwise(parts)]
        known = [rank for rank in unions if rank is not None]
        if not known:
            break
        at = unions.index(min(known))  # leftmost of the lowest
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def fast_tokenizer(
    ranks: dict[bytes, int], pattern: str, special: Sequence[SpecialToken] = (), *, nfc: bool = False
) -> Tokenizer:
    """The tokenizer itself. `pattern` is a name of PATTERNS or a regular expression. Raises ConversionError."""
    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    cut = _pre_tokenizer(pattern)
    placed = _place(special, set(ranks.values()))
    if any(number != len(ranks) + at for at, (_, number) in enumerate(placed)):
        _put_into_model(placed, vocabulary, cut)
    merges = [(spelled(left), spelled(right)) for left, right in recover_merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    for token, number in placed:
        # no runs of equal kind: the library numbers tokens in the order it is given them
        tokenizer.add_tokens([AddedToken(token.text, special=token.special, normalized=False)])
        if tokenizer.token_to_id(token.text) != number:
            raise ConversionError(f"special token {token.text!r} cannot have id {number}")
    return tokenizer


def _pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pattern in PATTERNS:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated"), to_bytes])
    demand_same_meaning(pattern)
    try:
        # tiktoken drops text that a pattern passes over
        split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    except Exception as error:  # the library raises plain Exception for a pattern that it cannot read
        known = ", ".join(PATTERNS)
        raise ConversionError(f"pattern {pattern!r} is none of {known}, nor a regular expression: {error}") from None
    return pre_tokenizers.Sequence([split, to_bytes])


def _place(special: Sequence[SpecialToken], taken: set[int]) -> list[tuple[SpecialToken, int]]:
    """Each token with its id, in order of ids."""
    placed: list[tuple[SpecialToken, int]] = []
    following, given = max(taken) + 1, set()
    for token in special:
        number = following if token.id is None else token.id
        if number in taken or number in given:
            raise ConversionError(f"special token {token.text!r} would take id {number}, which is another token's")
        if any(token.text == other.text for other, _ in placed):
            raise ConversionError(f"special token {token.text!r} is given twice")
        given.add(number)
        following = max(following, number + 1)
        placed.append((token, number))
    return sorted(placed, key=lambda pair: pair[1])


def _put_into_model(
    placed: list[tuple[SpecialToken, int]], vocabulary: dict[str, int], cut: pre_tokenizers.PreTokenizer
) -> None:
    """Ids that do not follow the ranks must stand in the model's own vocabulary, where text must not reach them."""
    for token, number in placed:
        if len(cut.pre_tokenize_str(token.text)) < 2 or token.text in vocabulary:
            raise ConversionError(f"special token {token.text!r} cannot have id {number}: plain text would become it")
        vocabulary[token.text] = number
