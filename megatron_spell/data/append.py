"""Documents added to a store that is there: sets of their own, on the sides on which their groups already are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from megatron_spell.data.build import read_sources
from megatron_spell.data.clean import Tally, clean
from megatron_spell.data.cluster import PlannedSet, group_units, sets_of_sides, sides_of
from megatron_spell.data.documents import RawSet, Unit, documents_of
from megatron_spell.data.errors import BuildError
from megatron_spell.data.file_format import SPLITS, document_digest
from megatron_spell.data.progress import BuildProgress
from megatron_spell.data.readers.source import printable
from megatron_spell.data.settings import BuildSettings
from megatron_spell.data.store import TokenStore
from megatron_spell.data.tokenise import StoreTokenizer, num_cores, write_sets
from megatron_spell.data.verify import verify_store
from megatron_spell.data.write import StoreWriter


@dataclass(frozen=True, slots=True)
class AppendReport:
    """What was added. `num_known` documents were in the store already; `num_left_over` did not fill half a set."""

    path: Path
    num_documents: int
    num_too_short: int
    num_duplicate: int
    num_known: int
    num_left_over: int
    num_sets: dict[str, int]
    num_tokens: int


@dataclass(slots=True)
class _Known:
    """What a store holds already: texts by digest, document ids, and on which side every group is."""

    digests: set[bytes]
    ids: set[str]
    sides: dict[str, str]
    num_sets: int
    num_repeated: int = field(default=0)

    @classmethod
    def of(cls, store: TokenStore) -> "_Known":
        split_of_document = np.repeat(store.all_splits(), store.set_sizes())
        names, groups = store.lines("groups"), store.document_groups()
        sides = {names[group]: SPLITS[split] for group, split in zip(groups.tolist(), split_of_document.tolist())}
        digests = {digest.tobytes() for digest in store.document_digests()}
        return cls(digests, set(store.document_ids()), sides, len(store.all_splits()))

    def unseen(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """What the store does not hold, under ids that it does not hold; a set as it stands is new as a whole."""
        for unit in units:
            documents = documents_of(unit)
            if all(document_digest(document.text) in self.digests for document in documents):
                self.num_repeated += len(documents)
                continue
            renamed = tuple(replace(document, doc_id=self._free(document.doc_id)) for document in documents)
            yield replace(unit, documents=renamed) if isinstance(unit, RawSet) else renamed[0]

    def _free(self, wanted: str) -> str:
        doc_id, number = wanted, 1
        while doc_id in self.ids:
            number += 1
            doc_id = f"{wanted}~{number}"
        self.ids.add(doc_id)
        return doc_id


def append_store(
    path: Path,
    sources: Sequence[str],
    tokenizer: StoreTokenizer,
    console: Console | None = None,
    workers: int | None = None,
) -> AppendReport:
    """Add what is new in `sources` to the store at `path`, under the settings it was built with.

    The path holds the old store until the new one is whole; who has the old one open keeps reading it. Sets and
    documents that were there keep their place and number. A group that the store has stays on its side; new groups
    are divided as a build divides them. Raises SourceError, BuildError, StoreError.
    """
    path, tally, workers = Path(path), Tally(), workers or num_cores()
    verify_store(path)  # a damaged chunk must not get a new checksum
    with TokenStore.open(path) as store, StoreWriter(path, workers) as writer:
        _demand_tokenizer(store, tokenizer)
        known, settings = _Known.of(store), _settings_of(store)
        with BuildProgress(console) as progress:
            read = progress.counted("read", read_sources(sources, settings))
            new = list(known.unseen(clean(read, settings.min_chars, tally)))
            planned = _planned(new, known, settings)
            writer.copy(store)
            write_sets(progress.counted("tokenise", planned, total=len(planned)), tokenizer, writer, workers)
        num_added = sum(len(one.documents) for one in planned)
        dropped = {
            "too_short": tally.num_too_short,
            "duplicate": tally.num_duplicate,
            "known": known.num_repeated,
            "left_over": sum(len(documents_of(unit)) for unit in new) - num_added,
        }
        writer.finish(
            fingerprint=tokenizer.fingerprint,
            sources=[printable(source) for source in sources],
            settings=asdict(settings),
            counts={"documents": num_added, "dropped": dropped},
        )
        num_tokens = writer.num_tokens - store.summary().num_tokens
    num_sets = {split: sum(one.split == split for one in planned) for split in SPLITS}
    return AppendReport(path, num_added, *dropped.values(), num_sets=num_sets, num_tokens=num_tokens)


def _demand_tokenizer(store: TokenStore, tokenizer: StoreTokenizer) -> None:
    if tokenizer.fingerprint != store.tokenizer_fingerprint:
        raise BuildError(
            f"{store.path} was built with the tokenizer {store.tokenizer_fingerprint[:12]} and this is"
            f" {tokenizer.fingerprint[:12]}; give the one it was built with"
        )


def _settings_of(store: TokenStore) -> BuildSettings:
    """Those of the first build; what it did not know yet is at its default."""
    written = store.builds[0]["settings"]
    return BuildSettings(**{one.name: written[one.name] for one in fields(BuildSettings) if one.name in written})


def _planned(units: Sequence[Unit], known: _Known, settings: BuildSettings) -> tuple[PlannedSet, ...]:
    """Sets of `units`; a side whose plain documents do not fill half a set gets none of them. Raises BuildError."""
    grouped = group_units(units)
    sides = sides_of(grouped, settings, known=known.sides)
    for side in SPLITS:
        if sum(len(places) for name, places in grouped.plain.items() if sides[name] == side) < settings.fewest:
            grouped.plain = {name: places for name, places in grouped.plain.items() if sides[name] != side}
    if not grouped.plain and not grouped.standing:
        raise BuildError(
            f"the sources give {len(units)} new documents ({known.num_repeated} are in the store already) and a set"
            f" of either side needs at least {settings.fewest}; add sources"
        )
    return sets_of_sides(units, grouped, sides, settings, known.num_sets)
