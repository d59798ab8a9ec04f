"""Documents -> sets of related documents, and which of the sets are held out."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_spell.data.clean import Tally, clean
from megatron_spell.data.documents import RawDocument
from megatron_spell.data.errors import BuildError
from megatron_spell.data.settings import BuildSettings
from megatron_spell.types.seeds import stream_seed

Numbered = tuple[int, RawDocument]  # with its place among all that were read
TRAIN, HELDOUT = "train", "heldout"
_COMPONENTS = 64  # of the TF-IDF vectors
_MAX_TERMS = 50_000
_MAX_PARTS = 16
# Words; single characters where a script writes no spaces; punctuation, so that no text is without a term.
_TERMS = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]"


@dataclass(frozen=True, slots=True)
class PlannedSet:
    """A set before it is tokenised. `split` is "train" or "heldout"; documents stand in the order they were read."""

    set_id: str
    split: str
    documents: tuple[RawDocument, ...]


def plan_sets(
    documents: Iterable[RawDocument], settings: BuildSettings, tally: Tally | None = None
) -> tuple[PlannedSet, ...]:
    """Clean `documents` and group them into sets of set_size / 2 to 2 * set_size, a seeded share of them held out.

    Whole groups are held out. On each side a group of at least `set_size` documents becomes sets of consecutive
    documents; smaller groups stay whole and are put together by the similarity of their words. A pure function of its
    arguments. Raises BuildError when the documents do not fill half a set.
    """
    groups: dict[str, list[Numbered]] = {}
    for numbered in enumerate(clean(documents, settings.min_chars, tally)):
        groups.setdefault(numbered[1].group, []).append(numbered)
    num_kept = sum(map(len, groups.values()))
    if num_kept < settings.fewest:
        raise BuildError(
            f"set_size = {settings.set_size}: the sources give {num_kept} documents and a set needs at least"
            f" {settings.fewest}; add sources, cut them with max_chars, or lower set_size"
        )
    held = heldout_groups({name: len(group) for name, group in groups.items()}, settings)
    return sets_of_sides({name: HELDOUT if name in held else TRAIN for name in groups}, groups, settings)


def sets_of_sides(
    sides: Mapping[str, str], groups: Mapping[str, list[Numbered]], settings: BuildSettings, first_number: int = 0
) -> tuple[PlannedSet, ...]:
    """The sets of `groups`, each on the side that `sides` names for it; numbered from `first_number` on.

    A side that has documents needs at least half a set of them.
    """
    found = []
    for side in (TRAIN, HELDOUT):
        members = [group for name, group in groups.items() if sides[name] == side]
        found += [(sorted(cluster), side) for cluster in _cluster(members, settings)] if members else []
    return tuple(
        PlannedSet(f"set-{number:05d}", split, tuple(document for _, document in cluster))
        for number, (cluster, split) in enumerate(sorted(found, key=lambda one: one[0][0][0]), first_number)
    )


def heldout_groups(num_documents: Mapping[str, int], settings: BuildSettings) -> frozenset[str]:
    """The groups to hold out, given how many documents each has: as near to the wanted share as whole groups come.

    They are taken in an order that depends on the seed and their names alone, so that documents which are added or
    change their length leave nearly all others on their side. Both sides get at least half a set, or none is held out.
    """
    total = sum(num_documents.values())
    most = total - settings.fewest
    wanted = max(settings.heldout * total, settings.fewest)
    order = sorted(num_documents, key=lambda name: (stream_seed(settings.seed, "heldout", name), name))
    held, num_held = set(), 0
    for name in order if settings.heldout > 0 else ():
        more = num_held + num_documents[name]
        if more <= most and (num_held < settings.fewest or abs(more - wanted) < abs(num_held - wanted)):
            held.add(name)
            num_held = more
    return frozenset(held) if num_held >= settings.fewest else frozenset()


def _cluster(groups: Sequence[list[Numbered]], settings: BuildSettings) -> list[list[Numbered]]:
    size = settings.set_size
    clusters = [run for group in groups if len(group) >= size for run in _runs(group, size)]
    small = [group for group in groups if len(group) < size]
    if not small:
        return clusters
    bins = _bins_of_related([_text(group) for group in small], [len(group) for group in small], size, settings.seed)
    *bins, last = [[numbered for unit in bin_ for numbered in small[unit]] for bin_ in bins]
    if len(last) >= settings.fewest:
        return [*clusters, *bins, last]
    # The small groups together do not fill half a set: they go into the most similar of the others' sets.
    vectors = _vectors([_text(cluster) for cluster in [last, *clusters]], settings.seed)
    clusters[int(np.argmax(vectors[1:] @ vectors[0]))].extend(last)
    return clusters


def _text(cluster: Sequence[Numbered]) -> str:
    return "\n".join(document.text for _, document in cluster)


def _runs(group: list[Numbered], size: int) -> list[list[Numbered]]:
    """Consecutive runs of nearly equal length, between 2/3 and 3/2 of `size`."""
    runs = np.array_split(np.arange(len(group)), round(len(group) / size))
    return [[group[i] for i in run] for run in runs]


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
            load = self.load(part)
            if 2 * load <= 3 * self.size:
                bins.append(part.tolist())
            else:
                heavy.extend(self._parts(part, min(_MAX_PARTS, max(2, round(load / self.size)))))
        return bins

    def _parts(self, members: np.ndarray, num_parts: int) -> list[np.ndarray]:
        from sklearn.cluster import KMeans

        means = KMeans(min(num_parts, len(members)), random_state=self.seed, n_init=1)
        labels = means.fit(self.vectors[members]).labels_
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
