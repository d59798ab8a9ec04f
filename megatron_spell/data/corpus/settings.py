"""What a corpus is read with and what its documents must pass."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_spell.data.errors import BuildError
from megatron_spell.data.readers.slices import ReadOptions


@dataclass(frozen=True, slots=True)
class Filters:
    """What is dropped beside short texts and exact repetitions; None and 0 leave a filter out.

    Defaults drop nothing. `PRESETS` has the paper's.
    """

    max_doc_chars: int | None = None  # of a document, after it was cut
    max_set_chars: int | None = None  # of a set that stands as it is
    min_quality: float | None = None  # of documents that carry a quality
    heuristics: bool = False  # corpus/quality.py
    near_duplicates: float = 0.0  # estimated Jaccard similarity of word 5-grams from which a later document is dropped

    def __post_init__(self) -> None:
        if not 0 <= self.near_duplicates <= 1:
            raise BuildError(f"near_duplicates = {self.near_duplicates} must be at least 0 (off) and at most 1")


# Paper, E.1: 100 to 32,768 characters, quality 1.0, MinHash at 0.8; financial documents of less than 16K tokens.
PAPER = Filters(max_doc_chars=32_768, max_set_chars=65_536, min_quality=1.0, near_duplicates=0.8)
PRESETS = {
    "none": Filters(),
    "paper": PAPER,
    "web": Filters(PAPER.max_doc_chars, PAPER.max_set_chars, PAPER.min_quality, True, PAPER.near_duplicates),
}
MIN_CHARS = {"none": 80, "paper": 100, "web": 100}


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """How a corpus is read and filtered; `decontaminate` are benchmark files."""

    read: ReadOptions = field(default_factory=ReadOptions)
    filters: Filters = field(default_factory=Filters)
    decontaminate: tuple[Path, ...] = ()
    skip_bad: bool = False  # count what cannot be read, by file, instead of ending

    def recorded(self) -> dict[str, Any]:
        """What is written into a store beside the build's own settings: nothing when nothing is asked for."""
        if self == CorpusSettings():
            return {}
        filters = asdict(self.filters)
        return filters | {"decontaminate": [path.name for path in self.decontaminate], "skip_bad": self.skip_bad}
