"""Sources -> planned sets, in steps that are kept in a work folder and gone on from there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from megatron_spell.data.cluster import Arranged, arrange, demand_half_a_set, set_name, sides_of
from megatron_spell.data.corpus.benchmarks import benchmark_slices, write_benchmarks
from megatron_spell.data.corpus.decontaminate import NO_BENCHMARK, DecontaminatePart, decontaminate_part
from megatron_spell.data.corpus.duplicates import SignPart, exact_duplicates, near_duplicates, sign_part
from megatron_spell.data.corpus.filters import REASONS, FilterPart, filter_part
from megatron_spell.data.corpus.parts import HINTS, NOT_STANDING, Part, read_unit
from megatron_spell.data.corpus.pool import each_part
from megatron_spell.data.corpus.portions import find_portions, read_portion
from megatron_spell.data.corpus.settings import CorpusSettings
from megatron_spell.data.corpus.units import Units, grouped_units, load_units, renamed_documents
from megatron_spell.data.corpus.vectors import ClusterVectors, Embedder, Steps
from megatron_spell.data.corpus.work import (
    WorkFolder,
    fingerprint,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)
from megatron_spell.data.documents import RawDocument, documents_of
from megatron_spell.data.errors import BuildError
from megatron_spell.data.readers.source import printable
from megatron_spell.data.settings import BuildSettings

Job = TypeVar("Job")


@dataclass(frozen=True, slots=True)
class StoredSet:
    """A planned set whose texts are read when its documents are asked for; as light as its places."""

    set_id: str
    split: str
    places: tuple[tuple[str, int], ...]  # (file, offset) of each unit
    sources: tuple[str, ...]  # of each unit
    renamed: dict[int, tuple[str, ...]] = field(default_factory=dict)  # new ids of the documents of these units

    @property
    def documents(self) -> tuple[RawDocument, ...]:
        return tuple(document for n in range(len(self.places)) for document in self._unit(n))

    def _unit(self, n: int) -> Iterator[RawDocument]:
        documents = documents_of(read_unit(Path(self.places[n][0]), self.places[n][1]))
        ids = self.renamed.get(n) or tuple(document.doc_id for document in documents)
        for document, doc_id in zip(documents, ids, strict=True):
            yield replace(document, doc_id=doc_id, source=self.sources[n])


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """What became of the sources: the planned sets, and of every unit why it was dropped or which other it repeats."""

    sources: tuple[str, ...]
    sets: tuple[StoredSet, ...]
    units: Units
    verdicts: np.ndarray  # uint8, places in REASONS
    repeats: np.ndarray  # int64, the earlier unit that a duplicate repeats, -1 for none
    similarities: np.ndarray  # float32, to that unit
    benchmarks: np.ndarray  # uint16, which benchmark's text it holds
    faults: tuple[tuple[int, str, str, int], ...]  # (source, file, first message, how many)
    recorded: dict[str, Any]  # settings, for the store

    def num_by_reason(self) -> dict[str, int]:
        """Documents by the reason they were dropped for; "" for those kept."""
        weights = np.maximum(1, self.units.num_documents)
        counts = np.bincount(self.verdicts, weights, minlength=len(REASONS)).astype(int)
        return {reason: int(num) for reason, num in zip(REASONS, counts, strict=True)}

    @property
    def num_kept(self) -> int:
        return self.num_by_reason()[""]

    @property
    def num_dropped(self) -> dict[str, int]:
        """By reason, with the two that every build has, and of the others those that occurred."""
        reasons = self.num_by_reason()
        others = {name: num for name, num in reasons.items() if name and num}
        return {"too_short": reasons["too_short"], "duplicate": reasons["duplicate"]} | others


@dataclass(frozen=True)
class CorpusPlanner:
    """The steps over one work folder. What is there from an earlier call with equal inputs is not done again."""

    settings: BuildSettings
    corpus: CorpusSettings
    work: WorkFolder
    workers: int = 1
    embedder: Embedder | None = None
    steps: Steps = lambda name, total: lambda done: None

    def plan(self, sources: Sequence[str]) -> Corpus:
        """Raises SourceError, BuildError."""
        for path in self.corpus.decontaminate:
            benchmark_slices(path)  # what is not there is told before the work begins
        folder = self.work.path
        portions = find_portions(sources, self.settings.max_chars, self.corpus, folder)
        missing = [portion for portion in portions if not portion.part.is_whole]
        self._run("read", read_portion, missing, lambda portion: portion.name, len(portions))
        parts = [portion.part for portion in portions]
        units = load_units(parts)
        verdicts, orders, key = self._filtered(parts)
        verdicts, benchmarks, key = self._decontaminated(parts, verdicts, key)
        verdicts, repeats, similarities, key = self._deduplicated(parts, units, verdicts, key)
        names = tuple(printable(source) for source in sources)
        sets = self._sets(units, verdicts, orders, names, key)
        faults = tuple((part.source, *fault) for part in parts for fault in part.faults())
        return Corpus(names, sets, units, verdicts, repeats, similarities, benchmarks, faults, self._recorded())

    def _recorded(self) -> dict[str, Any]:
        model = {"embedding_model": self.embedder.fingerprint} if self.embedder else {}
        return self.corpus.recorded() | model

    def _run(self, step: str, work: Callable[[Job], None], jobs: list[Job], name_of, total: int) -> None:
        tell = self.steps(step, total)
        tell(total - len(jobs))
        for done, _ in enumerate(each_part(work, jobs, self.workers, name_of), start=total - len(jobs) + 1):
            tell(done)

    def _each(self, step: str, work: Callable[[Any], None], jobs: list) -> None:
        missing = [job for job in jobs if not job.out.exists()]
        self._run(step, work, missing, lambda job: f"{step} {job.part.key}", len(jobs))

    def _filtered(self, parts: list[Part]) -> tuple[np.ndarray, np.ndarray, str]:
        filters, seed = self.corpus.filters, self.settings.seed
        judged = replace(filters, near_duplicates=0.0)
        key = fingerprint("filter", asdict(judged), self.settings.min_chars, seed)
        jobs = [FilterPart(p, p.file(f".filter-{key}.npz"), filters, self.settings.min_chars, seed) for p in parts]
        self._each("filter", filter_part, jobs)
        arrays = [read_arrays(job.out) for job in jobs]
        return _joined(arrays, "verdicts"), _joined(arrays, "orders"), key

    def _decontaminated(self, parts: list[Part], verdicts: np.ndarray, key: str) -> tuple[np.ndarray, np.ndarray, str]:
        if not self.corpus.decontaminate:
            return verdicts, np.full(len(verdicts), NO_BENCHMARK, dtype=np.uint16), key
        pieces = [asdict(piece) for path in self.corpus.decontaminate for piece in benchmark_slices(path)]
        known = fingerprint("benchmarks", pieces)
        table = self.work.path / f"benchmarks-{known}.npz"
        if not table.exists():
            write_benchmarks(self.corpus.decontaminate, table)
        then = fingerprint("decontaminate", key, known)
        jobs = [DecontaminatePart(p, p.file(f".filter-{key}.npz"), table, p.file(f".clean-{then}.npz")) for p in parts]
        self._each("decontaminate", decontaminate_part, jobs)
        arrays = [read_arrays(job.out) for job in jobs]
        return _joined(arrays, "verdicts"), _joined(arrays, "benchmarks"), then

    def _deduplicated(
        self, parts: list[Part], units: Units, verdicts: np.ndarray, key: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        key = fingerprint("duplicates", key, [part.key for part in parts], self.corpus.filters.near_duplicates)
        path = self.work.path / f"duplicates-{key}.npz"
        if not path.exists():
            repeats, similarities = self._exact(units, verdicts)
            verdicts = np.where(repeats >= 0, REASONS.index("duplicate"), verdicts).astype(np.uint8)
            if self.corpus.filters.near_duplicates:
                self._near(parts, units, verdicts, repeats, similarities)
            write_arrays(path, verdicts=verdicts, repeats=repeats, similarities=similarities)
        arrays = read_arrays(path)
        return arrays["verdicts"], arrays["repeats"], arrays["similarities"], key

    def _exact(self, units: Units, verdicts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = np.flatnonzero(verdicts == 0)
        repeats = np.full(len(verdicts), -1, dtype=np.int64)
        first = kept[exact_duplicates(units.digests[kept])] if len(kept) else kept
        repeats[kept] = np.where(first == kept, -1, first)
        return repeats, (repeats >= 0).astype(np.float32)

    def _near(
        self,
        parts: list[Part],
        units: Units,
        verdicts: np.ndarray,
        repeats: np.ndarray,
        similarities: np.ndarray,
    ) -> None:
        """Mark near duplicates in all three arrays."""
        jobs = []
        for part, mine in zip(parts, units.by_part(verdicts), strict=True):
            rows = part.file(f".kept-{fingerprint(mine.tobytes().hex())}.npz")
            if not rows.exists():
                write_arrays(rows, verdicts=mine)
            jobs.append(SignPart(part, rows, rows.with_suffix(".minhash.npy")))
        self._each("signatures", sign_part, jobs)
        kept = np.flatnonzero(verdicts == 0)
        signatures = [np.load(job.out, mmap_mode="r", allow_pickle=False) for job in jobs]
        tell = self.steps("near duplicates", len(kept))
        for pair in near_duplicates(signatures, self.corpus.filters.near_duplicates):
            place = kept[pair.dropped]
            verdicts[place] = REASONS.index("near_duplicate")
            repeats[place], similarities[place] = kept[pair.kept], pair.similarity
            tell(pair.dropped)
        tell(len(kept))

    def _sets(
        self, units: Units, verdicts: np.ndarray, orders: np.ndarray, names: tuple[str, ...], key: str
    ) -> tuple[StoredSet, ...]:
        kept = np.flatnonzero(verdicts == 0)
        if not len(kept):
            raise BuildError(_nothing_left(verdicts, self.corpus))
        model = self.embedder.fingerprint if self.embedder else ""
        key = fingerprint("sets", key, asdict(self.settings), model)
        path = self.work.path / f"sets-{key}.json"
        if not path.exists():
            found = self._arranged(units, kept, orders, key)
            write_json(path, [[one.split, one.members] for one in found])
        arranged = [Arranged(split, tuple(members)) for split, members in read_json(path)]
        renamed = renamed_documents(units, kept.tolist())
        return tuple(_stored(number, one, units, names, renamed) for number, one in enumerate(arranged))

    def _arranged(self, units: Units, kept: np.ndarray, orders: np.ndarray, key: str) -> list[Arranged]:
        grouped = grouped_units(units, kept)
        demand_half_a_set(grouped, self.settings)
        first = {name: places[0] for side in (grouped.plain, grouped.standing) for name, places in side.items()}
        vectors = ClusterVectors(
            units, self.work.path, key, self.settings.seed, self.workers, self.embedder, self.steps
        )
        tell = self.steps("group", 1)
        sides = sides_of(grouped, self.settings, lambda name: (int(orders[first[name]]), name))
        found = arrange(grouped, sides, vectors, self.settings, self.workers)
        tell(1)
        return found


def _joined(arrays: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.concatenate([one[name] for one in arrays])


def _stored(
    number: int, one: Arranged, units: Units, names: tuple[str, ...], renamed: dict[int, tuple[str, ...]]
) -> StoredSet:
    hints = {HINTS[stands] for place in one.members if (stands := int(units.standing[place])) != NOT_STANDING}
    return StoredSet(
        set_id=set_name(number, hints.pop() if len(hints) == 1 else ""),
        split=one.split,
        places=tuple(map(units.where, one.members)),
        sources=tuple(names[units.sources[place]] for place in one.members),
        renamed={n: renamed[place] for n, place in enumerate(one.members) if place in renamed},
    )


def _nothing_left(verdicts: np.ndarray, corpus: CorpusSettings) -> str:
    counts = np.bincount(verdicts, minlength=len(REASONS))
    dropped = ", ".join(f"{num} {reason}" for reason, num in zip(REASONS, counts, strict=True) if num and reason)
    way_out = "cut long ones with --max-chars, or choose --filters none" if dropped else "give other sources"
    return f"no document is left of {len(verdicts)} ({dropped or 'none was read'}); {way_out}"
