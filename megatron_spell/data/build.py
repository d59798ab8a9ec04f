"""From sources to a token store: read, clean, plan the sets, tokenise, write."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from megatron_spell.data.clean import Tally
from megatron_spell.data.cluster import HELDOUT, TRAIN, PlannedSet, plan_sets
from megatron_spell.data.corpus.plan import Corpus
from megatron_spell.data.documents import RawDocument, Unit
from megatron_spell.data.errors import BuildError
from megatron_spell.data.readers.source import printable, read_source
from megatron_spell.data.settings import BuildSettings
from megatron_spell.data.write import StoreWriter
from megatron_spell.types.documents import Document, DocumentSet


class StoreTokenizer(Protocol):
    """What a build needs of a tokenizer: ids of text in which special tokens are only characters, and who it is."""

    fingerprint: str

    def encode_quoted(self, text: str) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built. `num_dropped` documents by reason, `num_sets` by split; `notes` are lines for the user."""

    path: Path
    num_documents: int
    num_dropped: dict[str, int]
    num_sets: dict[str, int]
    num_tokens: int
    notes: tuple[str, ...] = ()

    @property
    def num_too_short(self) -> int:
        return self.num_dropped["too_short"]

    @property
    def num_duplicate(self) -> int:
        return self.num_dropped["duplicate"]


def build_store(
    sources: Sequence[str],
    tokenizer: StoreTokenizer,
    out: Path,
    settings: BuildSettings,
    console: Console | None = None,
    corpus: Corpus | None = None,
) -> BuildReport:
    """Build the store at `out`; what was there stays until the new one is whole.

    `corpus` is what the pipeline made of `sources` (corpus/plan.py); without it they are read, cleaned and planned in
    memory, and nothing but short and repeated documents is dropped.
    Equal sources, tokenizer and settings give identical bytes. Progress is drawn on `console` (standard error by
    default) when that is a terminal. Raises SourceError, BuildError.
    """
    out = Path(out)
    tally = corpus or Tally()
    with _Progress(console) as progress, StoreWriter(out) as writer:
        planned = corpus.sets if corpus else _planned(sources, settings, tally, progress)
        for one in progress.counted("tokenise", planned, total=len(planned)):
            writer.add(_tokenised(one, tokenizer))
        names = [printable(source) for source in sources]
        counts = {"documents": tally.num_kept, "dropped": tally.num_dropped}
        recorded = asdict(settings) | (corpus.recorded if corpus else {})
        writer.finish(fingerprint=tokenizer.fingerprint, sources=names, settings=recorded, counts=counts)
        num_tokens = writer.num_tokens
    num_sets = {split: sum(one.split == split for one in planned) for split in (TRAIN, HELDOUT)}
    return BuildReport(
        path=out,
        num_documents=tally.num_kept,
        num_dropped=tally.num_dropped,
        num_sets=num_sets,
        num_tokens=num_tokens,
        notes=_notes(num_sets, settings),
    )


def _planned(
    sources: Sequence[str], settings: BuildSettings, tally: Tally, progress: "_Progress"
) -> tuple[PlannedSet, ...]:
    return plan_sets(progress.counted("read", read_sources(sources, settings)), settings, tally)


def read_sources(sources: Sequence[str], settings: BuildSettings) -> Iterator[Unit]:
    """The documents of all sources, one source after the other. Raises SourceError."""
    for source in sources:
        yield from read_source(source, settings.max_chars)


def _tokenised(planned: PlannedSet, tokenizer: StoreTokenizer) -> DocumentSet:
    documents = tuple(Document(d.doc_id, d.title, _token_ids(d, tokenizer)) for d in planned.documents)
    return DocumentSet(planned.set_id, planned.split, documents)


def _token_ids(document: RawDocument, tokenizer: StoreTokenizer) -> np.ndarray:
    token_ids_T = np.asarray(tokenizer.encode_quoted(document.text), dtype=np.int32)
    if token_ids_T.size == 0:
        raise BuildError(
            f"document {document.doc_id} has {len(document.text)} characters and no token; give another tokenizer"
        )
    return token_ids_T


def _notes(num_sets: dict[str, int], settings: BuildSettings) -> tuple[str, ...]:
    if settings.heldout == 0 or num_sets[HELDOUT]:
        return ()
    return ("no set is held out: the groups do not divide into two sides of at least half a set each; add documents",)


class _Progress:
    """Two bars on a terminal, nothing elsewhere."""

    def __init__(self, console: Console | None) -> None:
        shown_on = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=shown_on,
            transient=True,
            disable=not shown_on.is_terminal,
        )

    def counted(self, description: str, things: Iterable, total: int | None = None) -> Iterator:
        return iter(self._bars.track(things, total=total, description=description))

    def __enter__(self) -> "_Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
