"""Step 2: length and quality of every unit, and its group's place in the order of holding out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_spell.data.corpus.parts import NOT_STANDING, Part
from megatron_spell.data.corpus.quality import SIGNS, sign_against
from megatron_spell.data.corpus.settings import Filters
from megatron_spell.data.corpus.work import write_arrays
from megatron_spell.types.seeds import stream_seed

KEPT = ""
# Why a unit was dropped, in the order in which it is asked; verdicts are places in this tuple.
REASONS = (
    KEPT,
    "too_short",
    "too_long",
    "low_quality",
    *SIGNS,
    "benchmark_question",
    "benchmark_context",
    "duplicate",
    "near_duplicate",
)


@dataclass(frozen=True, slots=True)
class FilterPart:
    """The filters on one part, and the file their verdicts go to."""

    part: Part
    out: Path
    filters: Filters
    min_chars: int
    seed: int


def filter_part(job: FilterPart) -> None:
    """Write `verdicts` (uint8, places in REASONS) and `orders` (int64, from seed and group name) of every unit."""
    columns = job.part.load_columns()
    verdicts = np.zeros(len(columns["num_chars"]), dtype=np.uint8)
    orders = np.zeros(len(verdicts), dtype=np.int64)
    for row, unit in enumerate(job.part.units()):
        is_set = columns["standing"][row] != NOT_STANDING
        reason = _length_or_score(columns["num_chars"][row], columns["quality"][row], is_set, job)
        if reason == KEPT and job.filters.heuristics and not is_set:
            reason = sign_against(unit.text) or KEPT
        verdicts[row] = REASONS.index(reason)
        orders[row] = stream_seed(job.seed, "heldout", unit.group)
    write_arrays(job.out, verdicts=verdicts, orders=orders)


def _length_or_score(num_chars: int, quality: float, is_set: bool, job: FilterPart) -> str:
    most = job.filters.max_set_chars if is_set else job.filters.max_doc_chars
    if num_chars < job.min_chars:
        return "too_short"
    if most is not None and num_chars > most:
        return "too_long"
    if job.filters.min_quality is not None and quality < job.filters.min_quality:  # NaN, no quality, passes
        return "low_quality"
    return KEPT
