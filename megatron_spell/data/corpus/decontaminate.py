"""Step 3b: which units share text with a benchmark.

A unit is dropped when it holds any 13-gram of words of a benchmark's question or answer (one of 8 to 12 words counts
as a whole), or when a tenth of its own 13-grams, or 38 of them (as many as a passage of 50 words has), stand in the
contexts of benchmarks.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from megatron_spell.data.corpus.benchmarks import FEWEST_WORDS, NGRAM_WORDS, BenchmarkTable
from megatron_spell.data.corpus.filters import REASONS
from megatron_spell.data.corpus.parts import Part
from megatron_spell.data.corpus.words import ngram_hashes, word_hashes
from megatron_spell.data.corpus.work import read_arrays, write_arrays

CONTEXT_SHARE = 0.1
CONTEXT_NGRAMS = 50 - NGRAM_WORDS + 1
NO_BENCHMARK = np.uint16(2**16 - 1)


@dataclass(frozen=True, slots=True)
class DecontaminatePart:
    part: Part
    verdicts: Path  # of the step before
    table: Path
    out: Path


def decontaminate_part(job: DecontaminatePart) -> None:
    """Write `verdicts` of every unit and `benchmarks`, the number of the one that most shared n-grams are from."""
    verdicts = read_arrays(job.verdicts)["verdicts"]
    owners = np.full(len(verdicts), NO_BENCHMARK, dtype=np.uint16)
    table = _table(job.table)
    for row, unit in enumerate(job.part.units()):
        if verdicts[row] == 0:
            reason, owners[row] = shared_with(unit.text, table)
            verdicts[row] = REASONS.index(reason)
    write_arrays(job.out, verdicts=verdicts, benchmarks=owners)


@lru_cache(maxsize=1)
def _table(path: Path) -> BenchmarkTable:
    arrays = read_arrays(path)
    return BenchmarkTable(arrays["asked"], arrays["asked_by"], arrays["contexts"], arrays["contexts_by"])


def shared_with(text: str, table: BenchmarkTable) -> tuple[str, int]:
    """(reason, benchmark) for a text to drop, ("", NO_BENCHMARK) for one to keep."""
    words = word_hashes(text)
    runs = np.unique(ngram_hashes(words, NGRAM_WORDS))
    short = [ngram_hashes(words, num) for num in range(FEWEST_WORDS, NGRAM_WORDS)]
    asked = _owners(np.concatenate([runs, *short]), table.asked, table.asked_by)
    if len(asked):
        return "benchmark_question", _most(asked)
    found = _owners(runs, table.contexts, table.contexts_by)
    if len(found) >= CONTEXT_NGRAMS or (len(found) and len(found) >= CONTEXT_SHARE * len(runs)):
        return "benchmark_context", _most(found)
    return "", int(NO_BENCHMARK)


def _owners(runs: np.ndarray, known: np.ndarray, owners: np.ndarray) -> np.ndarray:
    if not len(known):
        return owners[:0]
    places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
    return owners[places[known[places] == runs]]


def _most(owners: np.ndarray) -> int:
    return int(np.bincount(owners).argmax())
