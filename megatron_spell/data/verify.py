"""Is a store what was written, to the last bit? And where not, what part of it is damaged?"""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from megatron_spell.data.errors import DamageError
from megatron_spell.data.file_format import (
    CHUNK_TOKENS,
    HEADER,
    PARTS,
    TOKENS,
    USER_BLOCK_BYTES,
    checksum_of_user_block,
    find_part,
    index_checksum,
    read_attribute,
    read_part,
)
from megatron_spell.data.store import LIBRARY_FAULTS, TokenStore, damage_named, demand_hdf5, demand_version

_READ_BYTES = 1 << 22
_MOST_TOLD = 5


def verify_store(path: Path | str, advance: Callable[[int], None] = lambda num_bytes: None) -> None:
    """Read every byte of the file at `path` and compare it with the checksums.

    `advance` is told how many bytes more have been read. Raises DamageError naming what is damaged and where,
    StoreError for a file that is no token store of this version.
    """
    path = Path(path)
    demand_hdf5(path)
    with path.open("rb") as file:
        wanted = checksum_of_user_block(file.read(USER_BLOCK_BYTES))
        found = hashlib.sha256()
        while block := file.read(_READ_BYTES):
            found.update(block)
            advance(len(block))
    if wanted == found.hexdigest():
        TokenStore.open(path).close()  # refuses what another version wrote
        return
    places = list(_damaged_places(path))
    if not places and wanted is None:
        places = [f"the block of {USER_BLOCK_BYTES} bytes at its beginning"]
    told = "; ".join(places[:_MOST_TOLD]) + (f"; and {len(places) - _MOST_TOLD} more" if places[_MOST_TOLD:] else "")
    raise DamageError(
        f"{path} is damaged: {told or 'bytes that change no token and nothing of the index'};"
        " bring a copy back or build it again with `megatron-spell data build`"
    )


def _damaged_places(path: Path) -> Iterator[str]:
    """What of the tokens and the index does not fit its checksum; a file that is no store is refused."""
    try:
        file = h5py.File(path, "r", locking=False)
    except LIBRARY_FAULTS as error:
        yield f"its HDF5 structure ({' '.join(str(error).split())[:120]})"
        return
    with file:
        with damage_named(path):
            demand_version(path, file)
        damaged = [name for name in PARTS if not _is_sound(lambda name=name: read_part(file, name))]
        yield from damaged
        if not damaged and not _is_sound(lambda: _demand_header(file)):
            yield "the file's attributes"
        if "chunks/crc32" not in damaged:
            yield from _damaged_chunks(file)


def _damaged_chunks(file: h5py.File) -> Iterator[str]:
    checksums = file["chunks/crc32"][:]
    try:
        tokens = file[TOKENS]
        num_tokens = tokens.shape[0]
    except LIBRARY_FAULTS:
        yield TOKENS
        return
    if -(-num_tokens // CHUNK_TOKENS) != len(checksums):
        yield f"{TOKENS} ({num_tokens} of them, {len(checksums)} chunks of {CHUNK_TOKENS} were written)"
        return
    for number, checksum in enumerate(checksums):
        start, stop = number * CHUNK_TOKENS, min((number + 1) * CHUNK_TOKENS, num_tokens)
        if not _is_sound(lambda a=start, b=stop, c=checksum: _demand_crc32(tokens[a:b], c)):
            yield f"{TOKENS} chunk {number} (tokens {start} to {stop - 1}{_sets_at(file, start, stop)})"


def _sets_at(file: h5py.File, start: int, stop: int) -> str:
    """Names the sets that lie at those tokens, where the index can still be read."""
    try:
        documents, sets = read_part(file, "documents/offsets"), read_part(file, "sets/offsets")
        ids = read_part(file, "sets/ids").tobytes().decode().splitlines()
    except LIBRARY_FAULTS:
        return ""
    first, last = np.searchsorted(documents[sets], (start, stop - 1), side="right") - 1
    return f", {ids[first]} to {ids[last]}"


def _demand_header(file: h5py.File) -> None:
    header = {name: read_attribute(file, name) for name in HEADER}
    checksums = {name: read_attribute(find_part(file, name), "sha256") for name in PARTS}
    if index_checksum(header, checksums) != read_attribute(file, "index_checksum"):
        raise ValueError


def _demand_crc32(token_ids: np.ndarray, checksum: int) -> None:
    if zlib.crc32(token_ids) != checksum:
        raise ValueError


def _is_sound(check: Callable[[], object]) -> bool:
    try:
        check()
    except LIBRARY_FAULTS:
        return False
    return True
