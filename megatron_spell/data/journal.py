"""Token ids of a build under way, kept beside its store so that a build that is killed goes on where it stopped."""

import fcntl
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_spell.data.errors import BuildError
from megatron_spell.data.file_format import TOKEN_TYPE

DIGEST_BYTES = 32
_HEAD = struct.Struct(f"<{DIGEST_BYTES}sQQI")  # digest of what was tokenised, documents, tokens, crc32 of what follows
_LENGTH_TYPE = np.dtype("<i8")


class TokenJournal:
    """Batches of token ids in the order in which a build makes them, each known by a digest of what it was made from.

    A build asks for its batches one after the other; from the first that is not there, or not whole, it makes them
    itself. Nothing else than the batches decides what is found, so changed documents and another tokenizer need no
    care. Every batch has a checksum: what a crash of the machine left behind is read safely.

    The file is locked while it is open: two builds of one store at a time are refused. It stays until `remove`, except
    when it is empty.
    """

    def __init__(self, store: Path) -> None:
        """The journal of the store at `store`. Raises BuildError while another build has it, OSError."""
        self.path = store.with_name(f".{store.name}.journal")
        self._file = _locked(self.path, store)
        self._size = os.fstat(self._file.fileno()).st_size
        self._is_behind = self._size > 0

    def recall(self, digest: bytes) -> list[np.ndarray] | None:
        """int32 ids of each document of the next batch, or None when the batch must be made and given to `keep`."""
        if not self._is_behind:
            return None
        start = self._file.tell()
        batch = self._next(digest)
        if batch is None or self._file.tell() == self._size:
            self._is_behind = False
        if batch is None:
            self._file.seek(start)
            self._file.truncate()
        return batch

    def keep(self, digest: bytes, batch: Sequence[np.ndarray]) -> None:
        lengths = np.array([len(token_ids) for token_ids in batch], _LENGTH_TYPE)
        token_ids = np.concatenate(batch).astype(TOKEN_TYPE, copy=False)
        body = lengths.tobytes() + token_ids.tobytes()
        self._file.write(_HEAD.pack(digest, len(batch), len(token_ids), zlib.crc32(body)) + body)
        self._file.flush()

    def remove(self) -> None:
        """To be called when the store is whole."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if os.fstat(self._file.fileno()).st_size == 0:
            self.remove()
        self._file.close()

    def _next(self, digest: bytes) -> list[np.ndarray] | None:
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        found, num_documents, num_tokens, checksum = _HEAD.unpack(head)
        num_bytes = num_documents * _LENGTH_TYPE.itemsize + num_tokens * TOKEN_TYPE.itemsize
        if found != digest or num_bytes > self._size - self._file.tell():
            return None
        body = self._file.read(num_bytes)
        if zlib.crc32(body) != checksum:
            return None
        lengths = np.frombuffer(body, _LENGTH_TYPE, num_documents)
        token_ids = np.frombuffer(body, TOKEN_TYPE, offset=lengths.nbytes)
        return np.split(token_ids, np.cumsum(lengths)[:-1])


def _locked(path: Path, store: Path):
    """The file at `path`, opened for reading and writing by this process alone."""
    while True:
        file = path.open("a+b", buffering=1 << 20)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise BuildError(
                f"out = {store}: another build is writing it; wait until it has ended, or give another path"
            ) from None
        if os.fstat(file.fileno()).st_nlink:
            file.seek(0)
            return file
        file.close()  # a build that ended meanwhile has removed it
