"""Documents -> sets of related documents, and which of the sets are held out."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from megatron_spell.data.clean import Tally, clean
from megatron_spell.data.documents import RawDocument, RawSet, Unit, documents_of
from megatron_spell.data.errors import BuildError
from megatron_spell.data.related import bins_of_related, tfidf_vectors
from megatron_spell.data.settings import BuildSettings
from megatron_spell.types.seeds import stream_seed

TRAIN, HELDOUT = "train", "heldout"
Key = TypeVar("Key", bound=Hashable)
# Units (by their place among all that were kept) put together -> one vector for each.
Vectors = Callable[[Sequence[Sequence[int]]], np.ndarray]


@dataclass(frozen=True, slots=True)
class PlannedSet:
    """A set before it is tokenised. `split` is "train" or "heldout"; documents stand in the order they were read."""

    set_id: str
    split: str
    documents: tuple[RawDocument, ...]


@dataclass(frozen=True, slots=True)
class Arranged:
    """A set as the places of its units, ascending; one that stands as it is has a single unit."""

    split: str
    members: tuple[int, ...]


@dataclass(slots=True)
class Grouped:
    """What was kept: `plain` documents by group, and `standing` sets, each a group; both by place, from 0."""

    plain: dict[Hashable, list[int]] = field(default_factory=dict)
    standing: dict[Hashable, list[int]] = field(default_factory=dict)


def plan_sets(documents: Iterable[Unit], settings: BuildSettings, tally: Tally | None = None) -> tuple[PlannedSet, ...]:
    """Clean `documents` and group them into sets of set_size / 2 to 2 * set_size, a seeded share of them held out.

    Whole groups are held out. On each side a group of at least `set_size` documents becomes sets of consecutive
    documents; smaller groups stay whole and are put together by the similarity of their words. Sets that stand as they
    are stay so. A pure function of its arguments. Raises BuildError when the documents do not fill half a set.
    """
    units = list(clean(documents, settings.min_chars, tally))
    grouped = group_units(units)
    demand_half_a_set(grouped, settings)
    return sets_of_sides(units, grouped, sides_of(grouped, settings), settings)


def group_units(units: Sequence[Unit]) -> Grouped:
    grouped = Grouped()
    for place, unit in enumerate(units):
        side = grouped.standing if isinstance(unit, RawSet) else grouped.plain
        side.setdefault(unit.group, []).append(place)
    return grouped


def sets_of_sides(
    units: Sequence[Unit], grouped: Grouped, sides: Mapping[Hashable, str], settings: BuildSettings, first: int = 0
) -> tuple[PlannedSet, ...]:
    """The sets of `grouped`, each group on the side that `sides` names for it; numbered from `first` on.

    A side that has plain documents needs at least half a set of them.
    """

    def vectors(clusters: Sequence[Sequence[int]]) -> np.ndarray:
        return tfidf_vectors(("\n".join(units[place].text for place in one) for one in clusters), settings.seed)

    return tuple(
        PlannedSet(set_name(number, _hint(units[one.members[0]])), one.split, _documents(units, one))
        for number, one in enumerate(arrange(grouped, sides, vectors, settings), first)
    )


def _documents(units: Sequence[Unit], one: "Arranged") -> tuple[RawDocument, ...]:
    return tuple(document for place in one.members for document in documents_of(units[place]))


def _hint(unit: Unit) -> str:
    return unit.hint if isinstance(unit, RawSet) else ""


def set_name(number: int, hint: str) -> str:
    """Id of the set at place `number`; what its source is meant for stands in front."""
    return f"{hint or 'set'}-{number:05d}"


def arrange(
    grouped: Grouped, sides: Mapping[Hashable, str], vectors: Vectors, settings: BuildSettings, workers: int = 1
) -> list[Arranged]:
    """The sets on their sides, in the order of their first units."""
    found = [Arranged(sides[name], (place,)) for name, places in grouped.standing.items() for place in places]
    for split in (TRAIN, HELDOUT):
        side = [group for name, group in grouped.plain.items() if sides[name] == split]
        if side:
            found.extend(Arranged(split, tuple(sorted(c))) for c in _cluster(side, vectors, settings, workers))
    return sorted(found, key=lambda one: one.members[0])


def demand_half_a_set(grouped: Grouped, settings: BuildSettings) -> None:
    """Raises BuildError when plain documents do not fill half a set, unless there are only sets as they stand."""
    num_plain = sum(map(len, grouped.plain.values()))
    if num_plain < settings.fewest and not (grouped.standing and num_plain == 0):
        raise BuildError(
            f"set_size = {settings.set_size}: the sources give {num_plain} documents and a set needs at least"
            f" {settings.fewest}; add sources, cut them with max_chars, or lower set_size"
        )


def sides_of(
    grouped: Grouped,
    settings: BuildSettings,
    order: Callable[[Hashable], tuple] | None = None,
    known: Mapping[Hashable, str] | None = None,
) -> dict[Hashable, str]:
    """For every group, whether it is trained on or held out: where it is `known` to be, else by `order`."""
    known = known or {}
    ones = replace(settings, set_size=2)  # sets as they stand are held out one by one
    held: frozenset[Hashable] = frozenset()
    for side, chosen in ((grouped.standing, ones), (grouped.plain, settings)):
        new = {name: len(places) for name, places in side.items() if name not in known}
        held |= heldout_groups(new, chosen, order)
    names = [*grouped.plain, *grouped.standing]
    return {name: known.get(name, HELDOUT if name in held else TRAIN) for name in names}


def seeded_order(seed: int) -> Callable[[Hashable], tuple]:
    """An order of groups that depends on the seed and their names alone."""
    return lambda name: (stream_seed(seed, "heldout", str(name)), name)


def heldout_groups(
    num_documents: Mapping[Key, int], settings: BuildSettings, order: Callable[[Hashable], tuple] | None = None
) -> frozenset[Key]:
    """The groups to hold out, given how many documents each has: as near to the wanted share as whole groups come.

    They are taken in an order that depends on the seed and their names alone, so that documents which are added or
    change their length leave nearly all others on their side. Both sides get at least half a set, or none is held out.
    """
    total = sum(num_documents.values())
    most = total - settings.fewest
    wanted = max(settings.heldout * total, settings.fewest)
    held, num_held = set(), 0
    names = sorted(num_documents, key=order or seeded_order(settings.seed)) if settings.heldout > 0 else ()
    for name in names:
        more = num_held + num_documents[name]
        if more <= most and (num_held < settings.fewest or abs(more - wanted) < abs(num_held - wanted)):
            held.add(name)
            num_held = more
    return frozenset(held) if num_held >= settings.fewest else frozenset()


def _cluster(groups: Sequence[list[int]], vectors: Vectors, settings: BuildSettings, workers: int) -> list[list[int]]:
    size = settings.set_size
    clusters = [run for group in groups if len(group) >= size for run in _runs(group, size)]
    small = [group for group in groups if len(group) < size]
    if not small:
        return clusters
    weights = [len(group) for group in small]
    bins = bins_of_related(vectors(small), weights, size, settings.seed, workers)
    *bins, last = [[place for unit in bin_ for place in small[unit]] for bin_ in bins]
    if len(last) >= settings.fewest:
        return [*clusters, *bins, last]
    # The small groups together do not fill half a set: they go into the most similar of the others' sets.
    rows = vectors([last, *clusters])
    clusters[int(np.argmax(rows[1:] @ rows[0]))].extend(last)
    return clusters


def _runs(group: list[int], size: int) -> list[list[int]]:
    """Consecutive runs of nearly equal length, between 2/3 and 3/2 of `size`."""
    runs = np.array_split(np.arange(len(group)), round(len(group) / size))
    return [[group[i] for i in run] for run in runs]
