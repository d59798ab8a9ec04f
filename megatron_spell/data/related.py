"""Texts -> vectors, and vectors -> bins of related ones of about a given weight."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron_spell.data.corpus.pool import each_part

_COMPONENTS = 64  # of the TF-IDF vectors
_MAX_TERMS = 50_000
_MAX_PARTS = 16
_PARTED_ALONE = 20_000  # so many texts are parted in one process
# Words; single characters where a script writes no spaces; punctuation, so that no text is without a term.
_TERMS = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]"


def tfidf_vectors(texts: Iterable[str], seed: int) -> np.ndarray:
    """Unit vectors of TF-IDF reduced by SVD, one row a text; `texts` are read once, in their order."""
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):  # sums in another order would make the sets depend on the number of cores
        terms = _tfidf().fit_transform(texts)
        svd = _svd(terms, seed)
        return terms.toarray() if svd is None else normalize(svd.fit_transform(terms))


def _tfidf() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(token_pattern=_TERMS, sublinear_tf=True, max_features=_MAX_TERMS)


def _svd(terms: Any, seed: int) -> Any:
    from sklearn.decomposition import TruncatedSVD

    wanted = min(_COMPONENTS, terms.shape[0] - 1, terms.shape[1] - 1)
    return TruncatedSVD(wanted, random_state=seed) if wanted >= 2 else None


class SampledTfidf:
    """TF-IDF and SVD learned from a sample, for corpora whose terms do not fit into memory at once."""

    def __init__(self, sample: Iterable[str], seed: int) -> None:
        from threadpoolctl import threadpool_limits

        self._tfidf = _tfidf()
        with threadpool_limits(limits=1):
            terms = self._tfidf.fit_transform(sample)
            self._svd = _svd(terms, seed)
            self._svd.fit(terms)

    def vectors(self, texts: Iterable[str]) -> np.ndarray:
        """Unit vectors, float32, one row a text; a row depends on its text alone."""
        from sklearn.preprocessing import normalize
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=1):
            return normalize(self._svd.transform(self._tfidf.transform(texts))).astype(np.float32)


def bins_of_related(
    vectors: np.ndarray, weights: Sequence[int], size: int, seed: int, workers: int = 1
) -> list[list[int]]:
    """Rows of `vectors` in bins of weight size / 2 to 2 * size (one lighter bin when there is no more).

    Every weight is below `size`. The bins do not depend on `workers`.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct texts than clusters
        packing = Packing(vectors, np.array(weights), size, seed)
        everything = np.arange(len(weights))
        bins = packing.fill_parallel(everything, workers) if workers > 1 else packing.fill(everything)
        return packing.join_light(bins)


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """k-means from the top down with a limit on what a cluster may hold."""

    vectors: np.ndarray
    weights: np.ndarray
    size: int
    seed: int

    def fill(self, members: np.ndarray) -> list[list[int]]:
        """Bins of at most 3/2 of the size: what is heavier is parted again by similarity."""
        bins, heavy = [], [members]
        while heavy:
            part = heavy.pop()
            if self._fits(part):
                bins.append(part.tolist())
            else:
                heavy.extend(self._parts(part))
        return bins

    def fill_parallel(self, members: np.ndarray, workers: int) -> list[list[int]]:
        """The same bins in the same order; the lower branches of the tree are parted by `workers` processes."""
        parts = list(self._upper_parts(members))
        if len(parts) == 1:
            return self.fill(members)
        branches = [self._branch(part) for part in parts]
        found = each_part(_fill_branch, branches, workers, lambda branch: f"a group of {len(branch.weights)} texts")
        return [part[bin_].tolist() for part, bins in zip(parts, found, strict=True) for bin_ in bins]

    def _upper_parts(self, members: np.ndarray) -> Iterator[np.ndarray]:
        """Branches in the order in which `fill` comes to them: the last part is taken up first."""
        if len(members) <= _PARTED_ALONE or self._fits(members):
            yield members
            return
        for part in reversed(self._parts(members)):
            yield from self._upper_parts(part)

    def _branch(self, members: np.ndarray) -> "Packing":
        return replace(self, vectors=self.vectors[members], weights=self.weights[members])

    def _fits(self, members: np.ndarray) -> bool:
        return 2 * self.load(members) <= 3 * self.size

    def _parts(self, members: np.ndarray) -> list[np.ndarray]:
        from sklearn.cluster import KMeans

        num_parts = min(_MAX_PARTS, max(2, round(self.load(members) / self.size)), len(members))
        labels = KMeans(num_parts, random_state=self.seed, n_init=1).fit(self.vectors[members]).labels_
        parts = [members[labels == label] for label in np.unique(labels)]
        return parts if len(parts) > 1 else np.array_split(members, 2)  # texts that do not differ

    def load(self, bin_: list[int] | np.ndarray) -> int:
        return int(self.weights[bin_].sum())

    def join_light(self, bins: list[list[int]]) -> list[list[int]]:
        """Join every bin under half the size with the nearest one that then stays within 3/2 of it.

        When there is none, all others hold more than the size, so this is the last light bin and any can take it
        without passing twice the size.
        """
        loads = np.array([self.load(b) for b in bins], dtype=float)
        centres = np.array([self.vectors[b].mean(axis=0) for b in bins])
        while np.isfinite(loads).sum() > 1 and 2 * loads.min() < self.size:
            light = int(loads.argmin())
            load, loads[light] = loads[light], np.inf
            roomy = 2 * (loads + load) <= 3 * self.size
            open_ = roomy if roomy.any() else np.isfinite(loads)
            nearest = int(np.where(open_, centres @ centres[light], -np.inf).argmax())
            bins[nearest] = bins[nearest] + bins[light]
            loads[nearest] += load
            centres[nearest] = self.vectors[bins[nearest]].mean(axis=0)
        return [bin_ for bin_, load in zip(bins, loads, strict=True) if np.isfinite(load)]


def _fill_branch(branch: Packing) -> list[list[int]]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return branch.fill(np.arange(len(branch.weights)))
