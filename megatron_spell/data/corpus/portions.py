"""Step 1: sources -> portions of about 16 MB -> parts in normal form."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatron_spell.data.clean import normalised
from megatron_spell.data.corpus.parts import Part
from megatron_spell.data.corpus.settings import CorpusSettings
from megatron_spell.data.corpus.work import fingerprint
from megatron_spell.data.documents import Fault, Unit
from megatron_spell.data.errors import SourceError
from megatron_spell.data.readers.slices import SLICE_BYTES, Slice
from megatron_spell.data.readers.source import find_slices, read_slice

_MOST_FILES = 2000  # small files that share a part


@dataclass(frozen=True, slots=True)
class Portion:
    """Stretches of one source that become one part; `bad` says whether faults are counted or end the build."""

    part: Part
    slices: tuple[Slice, ...]
    max_chars: int | None
    settings: CorpusSettings

    @property
    def name(self) -> str:
        first, last = self.slices[0], self.slices[-1]
        return first.path if first.path == last.path else f"{first.path} to {last.path}"


def find_portions(
    sources: Sequence[str], max_chars: int | None, settings: CorpusSettings, folder: Path
) -> list[Portion]:
    """The portions of all sources, in order. Raises SourceError for a source that is not there."""
    portions = []
    for number, source in enumerate(sources):
        for slices in _packed(find_slices(source)):
            what = [asdict(replace(piece, path=str(Path(piece.path).absolute()))) for piece in slices]
            key = fingerprint("read", what, number, max_chars, asdict(settings.read), settings.skip_bad)
            portions.append(Portion(Part(folder, key, number), slices, max_chars, settings))
    return portions


def _packed(slices: Iterator[Slice]) -> Iterator[tuple[Slice, ...]]:
    """Consecutive slices together, as long as they are small."""
    waiting: list[Slice] = []
    for piece in slices:
        waiting.append(piece)
        if sum(map(_size, waiting)) >= SLICE_BYTES or len(waiting) >= _MOST_FILES:
            yield tuple(waiting)
            waiting = []
    if waiting:
        yield tuple(waiting)


def _size(piece: Slice) -> int:
    """Bytes that a slice stands for; where its stretch is not one of bytes, a whole portion's."""
    if piece.kind in (".parquet", ".arrow"):
        return min(piece.num_bytes, SLICE_BYTES)
    return piece.stop - piece.start


def read_portion(portion: Portion) -> None:
    """Read, cut and normalise into the portion's part. Raises SourceError at the first fault, unless it is to skip."""
    faults: list[tuple[str, str, int]] = []
    portion.part.write(_units(portion, faults), faults)


def _units(portion: Portion, faults: list[tuple[str, str, int]]) -> Iterator[Unit]:
    counts: Counter[str] = Counter()
    messages: dict[str, str] = {}
    for piece in portion.slices:
        for unit in read_slice(piece, portion.max_chars, portion.settings.read):
            if not isinstance(unit, Fault):
                yield normalised(unit)
            elif portion.settings.skip_bad:
                counts[unit.path] += 1
                messages.setdefault(unit.path, unit.message)
            else:
                raise SourceError(f"{unit.message} (or count what is bad instead: --skip-bad)")
    faults.extend((path, messages[path], num) for path, num in sorted(counts.items()))
