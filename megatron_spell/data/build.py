"""From sources to a token store: read, clean, plan the sets, tokenise, write."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from megatron_spell.data.clean import Tally
from megatron_spell.data.cluster import HELDOUT, TRAIN, PlannedSet, plan_sets
from megatron_spell.data.corpus.plan import Corpus
from megatron_spell.data.documents import Unit, from_source
from megatron_spell.data.progress import BuildProgress
from megatron_spell.data.readers.source import printable, read_source
from megatron_spell.data.settings import BuildSettings
from megatron_spell.data.tokenise import StoreTokenizer, num_cores, write_sets
from megatron_spell.data.write import StoreWriter


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
    workers: int | None = None,
    corpus: Corpus | None = None,
) -> BuildReport:
    """Build the store at `out`; what was there stays until the new one is whole.

    `corpus` is what the pipeline made of `sources` (corpus/plan.py); without it they are read, cleaned and planned in
    memory, and nothing but short and repeated documents is dropped.
    Equal sources, tokenizer and settings give identical bytes, whatever the number of `workers` (threads that tokenise;
    None means one for every core) and however often the build was killed on the way. Progress is drawn on `console`
    (standard error by default) when that is a terminal. Raises SourceError, BuildError.
    """
    out = Path(out)
    tally = corpus or Tally()
    workers = workers or num_cores()
    with BuildProgress(console) as progress, StoreWriter(out, workers) as writer:
        planned = corpus.sets if corpus else _planned(sources, settings, tally, progress)
        write_sets(progress.counted("tokenise", planned, total=len(planned)), tokenizer, writer, workers)
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
    sources: Sequence[str], settings: BuildSettings, tally: Tally, progress: BuildProgress
) -> tuple[PlannedSet, ...]:
    return plan_sets(progress.counted("read", read_sources(sources, settings)), settings, tally)


def read_sources(sources: Sequence[str], settings: BuildSettings) -> Iterator[Unit]:
    """The documents of all sources, one source after the other. Raises SourceError."""
    for source in sources:
        name = printable(source)
        for unit in read_source(source, settings.max_chars):
            yield from_source(unit, name)


def _notes(num_sets: dict[str, int], settings: BuildSettings) -> tuple[str, ...]:
    if settings.heldout == 0 or num_sets[HELDOUT]:
        return ()
    return ("no set is held out: the groups do not divide into two sides of at least half a set each; add documents",)
