"""Step 4: exact and near duplicates over the whole corpus; the first in reading order stays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_spell.data.corpus.parts import Part
from megatron_spell.data.corpus.words import hashed_runs
from megatron_spell.data.corpus.work import read_arrays, write_whole

NUM_PERMUTATIONS = 128
SHINGLE_WORDS = 5
_SEED = 1  # of the permutations; not the build's, so that equal texts are equal in every build
_AT_ONCE = 4096  # shingles; what they become stays in the processor's cache
_NO_SHINGLE = np.uint32(2**32 - 1)
# What is missed weighs more than what is looked at in vain: every candidate is compared by its whole signature.
_WEIGHTS = (0.1, 0.9)


@dataclass(frozen=True, slots=True)
class SignPart:
    part: Part
    verdicts: Path
    out: Path


def sign_part(job: SignPart) -> None:
    """Write the MinHash signatures, uint32 [kept units, permutations], of the units that are kept so far."""
    verdicts = read_arrays(job.verdicts)["verdicts"]
    texts = (unit.text for row, unit in enumerate(job.part.units()) if verdicts[row] == 0)
    found = [signature(text) for text in texts]
    rows = np.stack(found) if found else np.zeros((0, NUM_PERMUTATIONS), dtype=np.uint32)
    write_whole(job.out, lambda file: np.save(file, rows))


def signature(text: str) -> np.ndarray:
    """uint32 [permutations] of the text's word 5-grams."""
    from datasketch import MinHash

    shingles = (hashed_runs(text, SHINGLE_WORDS) & np.uint64(0xFFFFFFFF)).tolist()
    minhash = MinHash(NUM_PERMUTATIONS, seed=_SEED, hashfunc=_as_it_is, scheme="affine32")
    for start in range(0, len(shingles), _AT_ONCE):
        minhash.update_batch(shingles[start : start + _AT_ONCE])
    return np.asarray(minhash.hashvalues, dtype=np.uint32)


def _as_it_is(shingle: int) -> int:
    return shingle


@dataclass(frozen=True, slots=True)
class NearPair:
    """A unit that is dropped, the earlier one it repeats (both by place among those compared), and how alike."""

    dropped: int
    kept: int
    similarity: float


def exact_duplicates(digests: np.ndarray) -> np.ndarray:
    """For every unit, digests [units, 2], the place of the first with the same digest (its own where it is first)."""
    _, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def near_duplicates(signatures: Sequence[np.ndarray], threshold: float) -> Iterator[NearPair]:
    """Every unit that is at least `threshold` like an earlier one that stays, in order.

    `signatures` are arrays [units, permutations], one after the other. Candidates share a band of their signatures;
    what decides is the share of equal permutations, an estimate of the Jaccard similarity with a standard error of
    0.035 at 0.8.
    """
    buckets = _shared_buckets(signatures, *bands(threshold))
    starts = np.cumsum([0, *(len(rows) for rows in signatures)])

    def row(place: int) -> np.ndarray:
        part = int(np.searchsorted(starts, place, side="right")) - 1
        return signatures[part][place - starts[part]]

    kept_in: dict[int, list[int]] = {}
    for place, own in buckets:
        candidates = sorted({kept for bucket in own for kept in kept_in.get(bucket, ())})
        mine = row(place)
        if (mine == _NO_SHINGLE).all():
            continue  # a text without any word is like nothing
        alike = [float(np.mean(row(one) == mine)) for one in candidates]
        if alike and max(alike) >= threshold:
            best = int(np.argmax(alike))
            yield NearPair(place, candidates[best], alike[best])
            continue
        for bucket in own:
            kept_in.setdefault(bucket, []).append(place)


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows of a band) for a threshold, as datasketch chooses them."""
    from datasketch import MinHashLSH

    lsh = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, weights=_WEIGHTS)
    return lsh.b, lsh.r


def _shared_buckets(signatures: Sequence[np.ndarray], num_bands: int, num_rows: int) -> list[tuple[int, list[int]]]:
    """(place, its buckets) of every unit that shares one, ascending. One band is in memory at a time: 40 bytes a unit.

    datasketch's own index holds every band of every unit as Python objects, 3 KB a unit.
    """
    shared: dict[int, list[int]] = {}
    for band in range(num_bands):
        rows = [_band_hash(np.asarray(part[:, band * num_rows : (band + 1) * num_rows])) for part in signatures]
        _, inverse, counts = np.unique(np.concatenate(rows), return_inverse=True, return_counts=True)
        for place in np.flatnonzero(counts[inverse] > 1).tolist():
            shared.setdefault(place, []).append(int(inverse[place]) * num_bands + band)
    return sorted(shared.items())


def _band_hash(rows: np.ndarray) -> np.ndarray:
    """uint64 [units] of uint32 [units, rows]."""
    hashed = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T:
        hashed = (hashed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        hashed ^= hashed >> np.uint64(32)
    return hashed
