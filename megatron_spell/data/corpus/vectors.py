"""Step 5a: one vector for each cluster of units, by TF-IDF or by an embedding model."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_spell.data.corpus.pool import each_part
from megatron_spell.data.corpus.units import Texts, Units
from megatron_spell.data.corpus.work import fingerprint, write_whole
from megatron_spell.data.related import SampledTfidf, tfidf_vectors

FITTED_AT_ONCE = 32_768  # so many texts are fitted as a whole; of more, a sample of as many
_BLOCK = 2048
Steps = Callable[[str, int], Callable[[int], None]]  # (step's name, parts) -> what is told how many are done


class Embedder(Protocol):
    """A model that gives texts vectors [texts, components]; cut to what it can read. `fingerprint` says which."""

    fingerprint: str

    def embed(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class ClusterVectors:
    """Vectors of clusters of places; kept in the work folder, block by block."""

    units: Units
    folder: Path
    key: str
    seed: int
    workers: int
    embedder: Embedder | None = None
    steps: Steps = lambda name, total: lambda done: None

    def __call__(self, clusters: Sequence[Sequence[int]]) -> np.ndarray:
        which = hashlib.blake2b(digest_size=8)
        for cluster in clusters:
            which.update(np.array([*cluster, -1], dtype=np.int64).tobytes())
        name = "vectors-" + fingerprint(self.key, which.hexdigest(), self.seed)
        if self.embedder is None and len(clusters) <= FITTED_AT_ONCE:
            return self._kept(f"{name}.npy", lambda: tfidf_vectors(self._texts(clusters), self.seed))
        starts = range(0, len(clusters), _BLOCK)
        paths = [self.folder / f"{name}-{start:09d}.npy" for start in starts]
        missing = [n for n, path in enumerate(paths) if not path.exists()]
        blocks = [self._block(clusters[starts[n] : starts[n] + _BLOCK], paths[n]) for n in missing]
        tell = self.steps("vectors", len(paths))
        for done, _ in enumerate(self._computed(blocks, clusters), start=len(paths) - len(missing) + 1):
            tell(done)
        return np.concatenate([np.load(path, allow_pickle=False) for path in paths])

    def _computed(self, blocks: list["Block"], clusters: Sequence[Sequence[int]]) -> Iterator[None]:
        if not blocks:
            return
        if self.embedder is not None:
            for block in blocks:
                _save(block.out, _unit_length(self.embedder.embed(list(block.texts()))))
                yield
            return
        chosen = np.random.default_rng(self.seed).choice(len(clusters), FITTED_AT_ONCE, replace=False)
        sample = [clusters[n] for n in np.sort(chosen)]
        work = _Transform(SampledTfidf(self._texts(sample), self.seed))
        yield from each_part(work, blocks, self.workers, lambda block: block.out.name)

    def _kept(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        path = self.folder / name
        if not path.exists():
            _save(path, compute())
        return np.load(path, allow_pickle=False)

    def _texts(self, clusters: Sequence[Sequence[int]]) -> Iterator[str]:
        return self._block(clusters, self.folder).texts()

    def _block(self, clusters: Sequence[Sequence[int]], out: Path) -> "Block":
        return Block(tuple(tuple(map(self.units.where, cluster)) for cluster in clusters), out)


@dataclass(frozen=True, slots=True)
class Block:
    """Places of clusters, as files and offsets, and the file their vectors go to."""

    clusters: tuple[tuple[tuple[str, int], ...], ...]
    out: Path

    def texts(self) -> Iterator[str]:
        with Texts() as texts:
            for cluster in self.clusters:
                yield "\n".join(texts.at(where).text for where in cluster)


@dataclass(frozen=True, slots=True)
class _Transform:
    model: SampledTfidf

    def __call__(self, block: Block) -> None:
        _save(block.out, self.model.vectors(block.texts()))


def _save(path: Path, rows: np.ndarray) -> None:
    write_whole(path, lambda file: np.save(file, rows))


def _unit_length(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms == 0, 1, norms)).astype(np.float32)
