"""One seed for a run, and from it a separate stream for everything that is drawn."""

import hashlib


def stream_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of `key` and on nothing else: same key, same stream, in any process."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
