"""sentencepiece's compiled normalisation rules, and when a fast tokenizer can follow them exactly.

sentencepiece replaces, from left to right, the longest source that matches. The Precompiled normaliser of the
tokenizers library looks at grapheme clusters instead and replaces a whole cluster when a rule matches how it begins, so
a combining mark after a letter that has a rule is lost. It is therefore no equal of the usual rules (nmt_nfkc, nfkc and
their case-folding forms, 225,000 rules each). Rules of single characters are, as plain replacements one after another.

Source of the format: sentencepiece `normalizer.cc` (DecodePrecompiledCharsMap) and its Darts double array.
"""

import struct
from collections.abc import Iterator

from tokenizers import normalizers

from tokenizer_tools.errors import ConversionError

MAX_REPLACEMENTS = 256  # each is a pass over the text
_HAS_LEAF, _EXTENDED = 1 << 8, 1 << 9


def read_rules(charsmap: bytes) -> Iterator[tuple[str, str]]:
    """Source and result of every rule. Raises ConversionError for bytes that are no rules."""
    try:
        (size,) = struct.unpack_from("<I", charsmap)
        units = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
        for source, result in _walk(units, charsmap[4 + size :]):
            yield source.decode(), result.decode()
    except (struct.error, IndexError, ValueError) as error:
        raise ConversionError(f"the normalisation rules cannot be read: {error}") from None


def _walk(units: tuple[int, ...], results: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every key of the double array, with the text up to the next zero byte at its value."""
    open_nodes = [(_offset(units[0]), b"")]
    while open_nodes:
        base, key = open_nodes.pop()
        for byte in range(1, 256):
            at = base ^ byte
            if at >= len(units) or units[at] & (1 << 31 | 0xFF) != byte:
                continue
            child = at ^ _offset(units[at])
            if units[at] & _HAS_LEAF:
                start = units[child] & 0x7FFFFFFF
                yield key + bytes([byte]), results[start : results.index(b"\0", start)]
            open_nodes.append((child, key + bytes([byte])))


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & _EXTENDED) >> 6)


def replacements(charsmap: bytes, name: str, *, may_delete: bool) -> list[normalizers.Normalizer]:
    """One replacement a rule, which together do exactly what the rules do. Raises ConversionError with the reason.

    `may_delete` says whether a text that becomes empty is the same in both libraries.
    """
    rules: dict[str, str] = {}
    for source, result in read_rules(charsmap):
        rules[source] = result
        if len(source) > 1 or len(rules) > MAX_REPLACEMENTS:  # the usual rules are hundreds of thousands
            break
    if fault := _fault(rules, may_delete):
        raise ConversionError(
            f"normalisation {name or 'of its own'} has no exact equal in a fast tokenizer: {fault}; "
            "--inexact-normalisation takes the library's own reading, which loses marks behind what it replaces"
        )
    return [normalizers.Replace(source, result) for source, result in rules.items()]


def _fault(rules: dict[str, str], may_delete: bool) -> str | None:
    for source, result in rules.items():
        if len(source) > 1:
            return f"it holds rules of several characters such as {source!r}"
        if any(character in rules for character in result):
            return f"the result of its rule for {source!r} has a rule of its own"
        if "  " in result or (not result and not may_delete):
            return f"its rule for {source!r} leaves two blanks or nothing"
    return f"it holds more than {MAX_REPLACEMENTS} rules" if len(rules) > MAX_REPLACEMENTS else None


def precompiled(charsmap: bytes) -> normalizers.Normalizer:
    """The library's own reading of the rules, which loses marks after characters that have a rule."""
    return normalizers.Precompiled(charsmap)
