"""The file formats of the six benchmarks: which one a row is of, and the Record that it holds.

The contexts are those of the protocol (docs/evaluation.md): DocMath's paragraphs joined by newlines, title and text of
FRAMES' pages, LongBench's context as it stands. Original HotpotQA, 2WikiMultihopQA and MuSiQue records get LongBench's
form, "Passage i:", title and text.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from megatron_spell.evaluation.files import Row, read_rows
from megatron_spell.evaluation.record import BENCHMARKS, KIND_SEPARATOR, TASKS, BadRecord, Record
from megatron_spell.types.play import LETTERS
from megatron_spell.types.prompts import neutralise

_DOCMATH_SUBSETS = ("complong", "compshort", "simplong", "simpshort")
_MULTI_HOP = ("hotpotqa", "2wikimqa", "musique")
_TWO_WIKI_TYPES = ("compositional", "inference", "bridge_comparison")  # "comparison" is a type of both


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("says nothing; it must be a text")
    return text


def _decoded(value: Any) -> Any:
    """Nested fields stand as JSON text in some parquet and tsv copies."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return json.loads(value)
    return value


def _pairs(value: Any) -> Any:
    """(title, sentences) out of JSON's lists, or of {"title": [...], "sentences": [...]} as parquet copies have it."""
    value = _decoded(value)
    if isinstance(value, dict) and set(value) >= {"title", "sentences"}:
        if len(value["title"]) != len(value["sentences"]):
            raise ValueError("has not as many titles as texts")
        return list(zip(value["title"], value["sentences"]))
    return [tuple(each) if isinstance(each, list) else each for each in value] if isinstance(value, list) else value


def _answerable(value: bool) -> bool:
    if not value:
        raise ValueError("the paragraphs do not hold the answer; evaluate on MuSiQue-Ans, where all do")
    return value


def _id(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _number(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, int | float) else value


Said = Annotated[str, AfterValidator(_said)]
Id = Annotated[str | None, BeforeValidator(_id)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, populate_by_name=True)


class _Raw(_Strict, ABC):
    @abstractmethod
    def record(self, benchmark: str, origin: str) -> Record: ...

    def content_id(self, *texts: str) -> str:
        """For records without an id: the same wherever the record stands."""
        return "sha256-" + hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


class _DocMath(_Raw):
    question_id: Id = None
    source: str = ""
    question: Said
    paragraphs: Annotated[list[str], BeforeValidator(_decoded)]
    ground_truth: Annotated[Said, BeforeValidator(_number)]

    def record(self, benchmark: str, origin: str) -> Record:
        context = "\n".join(self.paragraphs)
        name = self.question_id or self.content_id(self.question, context)
        subset = name.partition("-")[0]
        kind = subset if subset in _DOCMATH_SUBSETS else self.source
        return _record(benchmark, name, self.question, context, (self.ground_truth,), kind, origin)


class _Page(_Strict):
    title: str = ""
    text: str


class _Frames(_Raw):
    name: Id = Field(None, validation_alias=AliasChoices("ID", "Unnamed: 0", ""))
    prompt: Said = Field(alias="Prompt")
    answer: Annotated[Said, BeforeValidator(_number)] = Field(alias="Answer")
    reasoning_types: str = ""
    wiki_items: Annotated[list[_Page], BeforeValidator(_decoded)] = []

    def record(self, benchmark: str, origin: str) -> Record:
        context = "\n".join(f"{page.title}\n{page.text}" for page in self.wiki_items)
        name = self.name or self.content_id(self.prompt)
        kind = KIND_SEPARATOR.join(sorted({each.strip() for each in self.reasoning_types.split("|")} - {""}))
        return _record(benchmark, name, self.prompt, context, (self.answer,), kind, origin)


class _LongBench(_Raw):
    name: Id = Field(None, alias="_id")
    input: Said
    context: str
    answers: Annotated[list[str], BeforeValidator(_decoded), Field(min_length=1)]

    def record(self, benchmark: str, origin: str) -> Record:
        name = self.name or self.content_id(self.input, self.context)
        return _record(
            benchmark, name, self.input, self.context, (_said(self.answers[0]), *self.answers[1:]), "", origin
        )


class _Passages(_Raw):
    """HotpotQA's form, which 2WikiMultihopQA has too."""

    name: Id = Field(None, validation_alias=AliasChoices("_id", "id"))
    question: Said
    answer: Said
    type: str = ""
    context: Annotated[list[tuple[str, list[str]]], BeforeValidator(_pairs)]

    def record(self, benchmark: str, origin: str) -> Record:
        context = _passages((title, " ".join(sentences)) for title, sentences in self.context)
        name = self.name or self.content_id(self.question, context)
        return _record(benchmark, name, self.question, context, (self.answer,), self.type, origin)


class _Paragraph(_Strict):
    title: str = ""
    paragraph_text: str


class _MuSiQue(_Raw):
    name: Id = Field(None, alias="id")
    question: Said
    answer: Said
    answer_aliases: Annotated[list[str], BeforeValidator(_decoded)] = []
    answerable: Annotated[bool, AfterValidator(_answerable)] = True
    paragraphs: Annotated[list[_Paragraph], BeforeValidator(_decoded)]
    question_decomposition: Annotated[list[dict[str, Any]], BeforeValidator(_decoded)] = []

    def record(self, benchmark: str, origin: str) -> Record:
        context = _passages((each.title, each.paragraph_text) for each in self.paragraphs)
        name = self.name or self.content_id(self.question, context)
        hops = len(self.question_decomposition)
        golds = tuple(dict.fromkeys((self.answer, *self.answer_aliases)))
        return _record(benchmark, name, self.question, context, golds, f"{hops} hops" if hops else "", origin)


class _LongBenchV2(_Raw):
    name: Id = Field(None, alias="_id")
    domain: str = ""
    difficulty: str = ""
    length: str = ""
    question: Said
    choice_A: Said
    choice_B: Said
    choice_C: Said
    choice_D: Said
    answer: Annotated[str, Field(pattern="^[A-D]$")]
    context: str = ""

    def record(self, benchmark: str, origin: str) -> Record:
        choices = (self.choice_A, self.choice_B, self.choice_C, self.choice_D)
        told = [f"({letter}) {choice.strip()}" for letter, choice in zip(LETTERS, choices)]
        question = "\n".join([self.question.strip(), "Choices:", *told])
        name = self.name or self.content_id(question, self.context)
        kind = KIND_SEPARATOR.join(filter(None, (self.domain, self.difficulty, self.length)))
        return _record(benchmark, name, question, self.context, (self.answer,), kind, origin)


def _record(
    benchmark: str, name: str, question: str, context: str, golds: tuple[str, ...], kind: str, origin: str
) -> Record:
    # Name and kind stand in files and pages of results; the texts are neutralised where they are shown.
    name, kind = neutralise(name), neutralise(kind)
    return Record(benchmark, name, TASKS[benchmark], question.strip(), context, golds, kind, origin)


def _passages(documents: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"Passage {number}:\n{title}\n{text}" for number, (title, text) in enumerate(documents, start=1))


@dataclass(frozen=True, slots=True)
class _Format:
    """Known by its `marks`; `benchmark_of` names the benchmark of a row, or says in a ValueError why it cannot."""

    marks: tuple[str, ...]
    benchmarks: tuple[str, ...]
    reader: type[_Raw]
    benchmark_of: Callable[[dict[str, Any]], str]


def _of_dataset(fields: dict[str, Any]) -> str | None:
    dataset = fields.get("dataset")
    return None if dataset is None else str(dataset).removesuffix("_e")


def _longbench_task(fields: dict[str, Any]) -> str:
    task = _of_dataset(fields)
    if task is None:
        raise ValueError(f"dataset: is missing; say which of {', '.join(_MULTI_HOP)} it is, as in {_MULTI_HOP[0]}=FILE")
    if task not in _MULTI_HOP:
        raise ValueError(
            f"dataset = {task!r}: is a task of LongBench that the protocol leaves out; it asks {', '.join(_MULTI_HOP)}"
        )
    return task


def _hotpot_or_two_wiki(fields: dict[str, Any]) -> str:
    if "evidences" in fields or "entity_ids" in fields or fields.get("type") in _TWO_WIKI_TYPES:
        return "2wikimqa"
    if "level" in fields or fields.get("type") == "bridge":
        return "hotpotqa"
    raise ValueError(
        "has neither HotpotQA's `level` nor 2WikiMultihopQA's `evidences`; say which it is, as in 2wikimqa=FILE"
    )


def _always(benchmark: str) -> Callable[[dict[str, Any]], str]:
    return lambda _: benchmark


_FORMATS = (
    _Format(("paragraphs", "ground_truth"), ("docmath",), _DocMath, _always("docmath")),
    _Format(("Prompt", "Answer"), ("frames",), _Frames, _always("frames")),
    _Format(("input", "answers"), _MULTI_HOP, _LongBench, _longbench_task),
    _Format(("choice_A", "choice_B"), ("longbench_v2",), _LongBenchV2, _always("longbench_v2")),
    _Format(("question", "answer", "paragraphs"), ("musique",), _MuSiQue, _always("musique")),
    _Format(("question", "answer", "context"), ("hotpotqa", "2wikimqa"), _Passages, _hotpot_or_two_wiki),
)


def read_file(path: Path, name: str | None) -> tuple[list[Record], list[BadRecord]]:
    """All records of `path` and all rows that are none. `name` tells the benchmark where the fields do not."""
    if name is not None and name not in BENCHMARKS:
        return [], [BadRecord(str(path), f"{name!r} is no benchmark; known are {', '.join(BENCHMARKS)}")]
    records: list[Record] = []
    bad: list[BadRecord] = []
    for row in read_rows(path):
        found = row if isinstance(row, BadRecord) else _read_row(row, name)
        if isinstance(found, BadRecord):
            bad.append(found)
        else:
            records.append(found)
    if not records and not bad:
        bad.append(BadRecord(str(path), "holds no record"))
    return records, bad


def _read_row(row: Row, name: str | None) -> Record | BadRecord:
    try:
        form = _format_of(row.fields, name)
        benchmark = _benchmark(form, row.fields, name)
        return form.reader.model_validate(row.fields).record(benchmark, row.origin)
    except ValidationError as error:
        return BadRecord(row.origin, "; ".join(_described(fault) for fault in error.errors()[:3]))
    except ValueError as error:
        return BadRecord(row.origin, str(error))


def _format_of(fields: dict[str, Any], name: str | None) -> _Format:
    possible = [form for form in _FORMATS if name is None or name in form.benchmarks]
    for form in possible:
        if all(mark in fields for mark in form.marks):
            return form
    wanted = " or ".join(f"({', '.join(form.marks)})" for form in possible)
    named = ", ".join(map(repr, list(fields)[:8])) or "no field"
    raise ValueError(f"has {named}; a record of {name or 'a benchmark'} has at least {wanted}")


def _benchmark(form: _Format, fields: dict[str, Any], name: str | None) -> str:
    if name is None:
        return form.benchmark_of(fields)
    told = _of_dataset(fields) if form.reader is _LongBench else None
    if told not in (None, name):
        raise ValueError(f"dataset = {told!r}: the file was said to be {name}")
    return name


def _described(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{where}: is missing"
    shown = repr(fault["input"])
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where} = {shown if len(shown) <= 60 else shown[:57] + '...'}: {message[0].lower()}{message[1:]}"
