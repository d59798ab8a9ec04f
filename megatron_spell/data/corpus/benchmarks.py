"""Step 3a: benchmark files -> the word n-grams of their questions, answers and contexts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_spell.data.corpus.words import hashed_runs
from megatron_spell.data.corpus.work import write_arrays
from megatron_spell.data.documents import Fault
from megatron_spell.data.errors import SourceError
from megatron_spell.data.readers.columns import column_records
from megatron_spell.data.readers.lines import json_records
from megatron_spell.data.readers.slices import Slice
from megatron_spell.data.readers.source import find_slices

NGRAM_WORDS = 13  # Brown et al. 2020, appendix C
FEWEST_WORDS = 8  # a shorter question or answer is no trace of a benchmark; one of 8 to 12 words is one n-gram
# Fields of the six benchmarks in their own forms, of LongBench and of TAT-QA.
_ASKED = ("question", "Prompt", "input", "answer", "Answer", "answers", "ground_truth", "questions")
_CHOICES = tuple(f"choice_{letter}" for letter in "ABCD")
_CONTEXTS = ("context", "paragraphs", "wiki_items", "document", "table")
_INSIDE_QUESTIONS = ("question", "question_text", "answer", "responses", "response_text")
_INSIDE_CONTEXTS = ("title", "text", "paragraph_text", "table")


@dataclass(frozen=True, slots=True)
class BenchmarkTable:
    """Sorted n-grams with the number of the benchmark that first has each, as arrays of one file."""

    asked: np.ndarray
    asked_by: np.ndarray
    contexts: np.ndarray
    contexts_by: np.ndarray


def benchmark_slices(path: Path) -> list[Slice]:
    """The stretches of a benchmark file. Raises SourceError when it is not there or no file of records."""
    if not path.exists():
        raise SourceError(f"benchmark {path}: is not there; give a file of records, .jsonl, .json or .parquet")
    slices = list(find_slices(str(path)))
    for piece in slices:
        if piece.kind not in (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".arrow"):
            raise SourceError(f"benchmark {path}: {piece.kind} holds no records; give .jsonl, .json or .parquet")
    return slices


def write_benchmarks(paths: tuple[Path, ...], out: Path) -> None:
    """The n-grams of all `paths`, sorted and distinct, with the number of the path they are from; and counts.

    Raises SourceError for a record that has neither question nor context.
    """
    asked: list[np.ndarray] = []
    contexts: list[np.ndarray] = []
    counts = np.zeros((len(paths), 2), dtype=np.int64)  # records, questions and answers too short to look for
    for number, path in enumerate(paths):
        mine: tuple[list, list] = ([], [])
        for questions, texts in _texts_of(path):
            counts[number, 0] += 1
            for text in questions:
                runs = hashed_runs(text, NGRAM_WORDS, FEWEST_WORDS)
                counts[number, 1] += len(runs) == 0
                mine[0].append(runs)
            mine[1].extend(hashed_runs(text, NGRAM_WORDS) for text in texts)
        for all_, own in zip((asked, contexts), mine, strict=True):
            all_.append(np.unique(np.concatenate([np.zeros(0, np.uint64), *own])))
    asked_by = _first_owner(asked)
    contexts_by = _first_owner(contexts)
    write_arrays(
        out, asked=asked_by[0], asked_by=asked_by[1], contexts=contexts_by[0], contexts_by=contexts_by[1], counts=counts
    )


def _first_owner(ngrams: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    owners = np.concatenate([np.full(len(one), n, dtype=np.uint16) for n, one in enumerate(ngrams)])
    distinct, first = np.unique(np.concatenate(ngrams), return_index=True)
    return distinct, owners[first]


def _texts_of(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """(questions and answers, contexts) of every record."""
    for piece in benchmark_slices(path):
        records = column_records(piece) if piece.kind in (".parquet", ".arrow") else json_records(piece)
        for record, where, _ in records:
            if isinstance(record, Fault):
                raise SourceError(f"benchmark {record.message}")
            yield benchmark_texts(record, where)


def benchmark_texts(record: Any, where: str) -> tuple[list[str], list[str]]:
    """(questions and answers, contexts) of one record. Raises SourceError when it has none of their fields."""
    if not isinstance(record, Mapping) or not any(record.get(name) for name in (*_ASKED, *_CONTEXTS)):
        raise SourceError(f"benchmark {where}: has none of the fields {', '.join((*_ASKED, *_CONTEXTS))}")
    asked = [text for name in (*_ASKED, *_CHOICES) for text in _strings(record.get(name), _INSIDE_QUESTIONS)]
    contexts = [text for name in _CONTEXTS for text in _passages(record.get(name))]
    return asked, contexts


def _strings(value: Any, fields: tuple[str, ...]) -> Iterator[str]:
    """All strings in lists and in these fields of objects, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one, fields)
    elif isinstance(value, Mapping):
        for name in fields:
            yield from _strings(value.get(name), fields)


def _passages(value: Any) -> Iterator[str]:
    """A string, or every passage of a list with its sentences or cells joined."""
    if isinstance(value, list):
        yield from (" ".join(_strings(one, _INSIDE_CONTEXTS)) for one in value)
    elif value is not None:
        yield " ".join(_strings(value, _INSIDE_CONTEXTS))
