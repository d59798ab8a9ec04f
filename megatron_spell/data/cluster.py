"""Documents -> sets of related documents, and which of the sets are held out."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_spell.data.clean import Tally, clean
from megatron_spell.data.documents import RawDocument
from megatron_spell.data.errors import BuildError
from megatron_spell.data.settings import BuildSettings
from megatron_spell.types.seeds import stream_seed

TRAIN, HELDOUT = "train", "heldout"
_COMPONENTS = 64  # of the TF-IDF vectors
_MAX_TERMS = 50_000
_MAX_CENTRES = 256  # beyond so many sets the documents are parted coarsely first: the pairs grow with their square
_COARSE_PARTS = 16
# Words; single characters where a script writes no spaces; punctuation, so that no text is without a term.
_TERMS = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]"


@dataclass(frozen=True, slots=True)
class PlannedSet:
    """A set before it is tokenised. `split` is "train" or "heldout"; documents stand in the order they were read."""

    set_id: str
    split: str
    documents: tuple[RawDocument, ...]


@dataclass(slots=True)
class _Cluster:
    """Indices of documents, and the name of what must stay on one side of the split."""

    documents: list[int]
    side: str


def plan_sets(
    documents: Iterable[RawDocument], settings: BuildSettings, tally: Tally | None = None
) -> tuple[PlannedSet, ...]:
    """Clean `documents` and group them into sets of set_size / 2 to 2 * set_size, a seeded share of them held out.

    A group of at least `set_size` documents becomes sets of consecutive documents; smaller groups stay whole and are
    put together by the similarity of their words. No group has documents on both sides of the split. A pure function
    of its arguments. Raises BuildError when the documents do not fill half a set.
    """
    kept = list(clean(documents, settings.min_chars, tally))
    if 2 * len(kept) < settings.set_size:
        raise BuildError(
            f"set_size = {settings.set_size}: the sources give {len(kept)} documents and a set needs at least"
            f" {-(-settings.set_size // 2)}; add sources, cut them with max_chars, or lower set_size"
        )
    clusters = _cluster(kept, settings)
    splits = _splits([c.side for c in clusters], settings)
    return tuple(
        PlannedSet(f"set-{number:05d}", split, tuple(kept[i] for i in cluster.documents))
        for number, (cluster, split) in enumerate(zip(clusters, splits, strict=True))
    )


def _cluster(documents: Sequence[RawDocument], settings: BuildSettings) -> list[_Cluster]:
    groups: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        groups.setdefault(document.group, []).append(index)
    size = settings.set_size
    clusters = [_Cluster(run, name) for name, g in groups.items() if len(g) >= size for run in _runs(g, size)]
    small = [group for group in groups.values() if len(group) < size]
    if small:
        texts = ["\n".join(documents[i].text for i in group) for group in small]
        for number, bin_ in enumerate(_bins_of_related(texts, [len(g) for g in small], size, settings.seed)):
            indices = sorted(i for unit in bin_ for i in small[unit])
            clusters.append(_Cluster(indices, f"\0{number}"))
    if clusters and 2 * len(clusters[-1].documents) < size:
        _join_remainder(documents, clusters, settings)
    return sorted(clusters, key=lambda cluster: cluster.documents[0])


def _runs(group: list[int], size: int) -> list[list[int]]:
    """Consecutive runs of nearly equal length, between 2/3 and 3/2 of `size`."""
    return [run.tolist() for run in np.array_split(np.array(group), round(len(group) / size))]


def _join_remainder(documents: Sequence[RawDocument], clusters: list[_Cluster], settings: BuildSettings) -> None:
    """The small groups together did not fill half a set: they go into the most similar of the others' sets."""
    remainder = clusters.pop()
    texts = ["\n".join(documents[i].text for i in c.documents) for c in [remainder, *clusters]]
    vectors = _vectors(texts, settings.seed)
    nearest = clusters[int(np.argmax(vectors[1:] @ vectors[0]))]
    nearest.documents.extend(remainder.documents)
    nearest.documents.sort()


def _bins_of_related(texts: Sequence[str], weights: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Indices of `texts` in bins of weight size / 2 to 2 * size (one lighter bin when there is no more).

    Every weight is below `size`.
    """
    from threadpoolctl import threadpool_limits

    # One thread: sums in another order would make the sets depend on the number of cores.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct texts than clusters
        vectors = _vectors(texts, seed)
        packing = _Packing(vectors, np.array(weights), size, seed)
        return packing.join_light(packing.fill(np.arange(len(texts))))


def _vectors(texts: Sequence[str], seed: int) -> np.ndarray:
    """Unit vectors of TF-IDF reduced by SVD, one row a text."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    terms = TfidfVectorizer(token_pattern=_TERMS, sublinear_tf=True, max_features=_MAX_TERMS).fit_transform(texts)
    wanted = min(_COMPONENTS, terms.shape[0] - 1, terms.shape[1] - 1)
    if wanted < 2:
        return terms.toarray()
    return normalize(TruncatedSVD(wanted, random_state=seed).fit_transform(terms))


@dataclass(frozen=True, slots=True, eq=False)
class _Packing:
    """k-means with a limit on what a cluster may hold."""

    vectors: np.ndarray
    weights: np.ndarray
    size: int
    seed: int

    def fill(self, members: np.ndarray) -> list[list[int]]:
        """Bins of at most 5/4 of the size: every member goes to the nearest centre with room, else to a new bin."""
        num_centres = max(1, round(int(self.weights[members].sum()) / self.size))
        if num_centres > _MAX_CENTRES:
            return [bin_ for part in self._coarse_parts(members) for bin_ in self.fill(part)]
        distances = self._means(members, num_centres).transform(self.vectors[members])
        bins: list[list[int]] = [[] for _ in range(num_centres)]
        loads = [0] * num_centres
        waiting = {int(member): None for member in members}
        for pair in np.argsort(distances, axis=None, kind="stable"):
            at, centre = divmod(int(pair), num_centres)
            if not waiting:
                break
            if (member := int(members[at])) in waiting and self._fits(loads[centre], member):
                del waiting[member]
                bins[centre].append(member)
                loads[centre] += int(self.weights[member])
        for member in waiting:
            self._put_anywhere(bins, member)
        return [bin_ for bin_ in bins if bin_]

    def _fits(self, load: int, member: int) -> bool:
        return 4 * (load + int(self.weights[member])) <= 5 * self.size

    def _put_anywhere(self, bins: list[list[int]], member: int) -> None:
        for bin_ in bins:
            if self._fits(self.load(bin_), member):
                bin_.append(member)
                return
        bins.append([member])

    def _coarse_parts(self, members: np.ndarray) -> list[np.ndarray]:
        labels = self._means(members, _COARSE_PARTS).labels_
        parts = [members[labels == label] for label in range(_COARSE_PARTS)]
        parts = [part for part in parts if part.size]
        return parts if len(parts) > 1 else np.array_split(members, _COARSE_PARTS)

    def _means(self, members: np.ndarray, num_centres: int):
        from sklearn.cluster import KMeans

        return KMeans(num_centres, random_state=self.seed, n_init=1).fit(self.vectors[members])

    def load(self, bin_: list[int]) -> int:
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


def _splits(sides: Sequence[str], settings: BuildSettings) -> list[str]:
    """A split for every set: whole sides, in a seeded order, as long as they bring the share nearer to the wanted.

    With a share above 0 and two sides or more at least one is held out, and one is always left for training.
    """
    sizes: dict[str, int] = {}
    for side in sides:
        sizes[side] = sizes.get(side, 0) + 1
    wanted = settings.heldout * len(sides)
    names = list(sizes)
    held: set[str] = set()
    num_held = 0
    for number in np.random.default_rng(stream_seed(settings.seed, "heldout")).permutation(len(names)):
        name = names[int(number)]
        if abs(num_held + sizes[name] - wanted) < abs(num_held - wanted) and len(held) + 1 < len(names):
            held.add(name)
            num_held += sizes[name]
    if not held and settings.heldout > 0 and len(names) > 1:
        held.add(min(names, key=lambda name: sizes[name]))
    return [HELDOUT if side in held else TRAIN for side in sides]
