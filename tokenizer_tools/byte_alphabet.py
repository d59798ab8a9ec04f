"""The 256 printable characters that stand for bytes in a byte-level tokenizer.json.

Source: GPT-2's `bytes_to_unicode`, which the ByteLevel stages of the tokenizers library follow.
"""


def _characters() -> list[str]:
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


CHARACTERS = _characters()
_BYTES = {character: byte for byte, character in enumerate(CHARACTERS)}


def spelled(token: bytes) -> str:
    """The entry of tokenizer.json that stands for these bytes."""
    return "".join([CHARACTERS[byte] for byte in token])


def read_bytes(entry: str) -> bytes | None:
    """The bytes that an entry of tokenizer.json stands for; None where it holds another character."""
    try:
        return bytes([_BYTES[character] for character in entry])
    except KeyError:
        return None
