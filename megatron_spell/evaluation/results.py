"""Results as JSONL: one line for every sample of every question. What all figures are made from."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron_spell.evaluation.record import KIND_SEPARATOR


def _right_or_wrong(score: float) -> float:
    if score not in (0.0, 1.0):
        raise ValueError("is neither 0 nor 1")
    return score


Count = Annotated[int, Field(ge=0)]
Verdict = Annotated[float, AfterValidator(_right_or_wrong)]


class ResultsError(ValueError):
    """A results file cannot be used; the message names file, line, field and value."""


class SampleResult(BaseModel):
    """One sample of one question.

    `prompt_tokens` counts the whole chat-formatted prompt before `truncated_tokens` were dropped from its middle;
    `num_tokens` what was generated. `prediction` is the answer that was read, None where none was. `judge_score` is
    None where the judge was not asked or gave no verdict; `score` is the larger of the two. `documents` is False for
    the baseline that withholds them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    benchmark: Literal["docmath", "frames", "hotpotqa", "2wikimqa", "musique", "longbench_v2"]
    record_id: str
    kind: str = ""
    documents: bool = True
    sample: Count
    seed: int
    prompt_tokens: Count
    truncated_tokens: Count
    finish_reason: str
    num_tokens: Count
    prediction: str | None
    rule_score: Verdict
    judge_score: Verdict | None = None
    score: Verdict

    @model_validator(mode="after")
    def _larger(self) -> "SampleResult":
        if self.score != max(self.rule_score, self.judge_score or 0.0):
            raise ValueError(f"score = {self.score}: is not the larger of rule_score and judge_score")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.kind.split(KIND_SEPARATOR)) if self.kind else ()

    @property
    def finished(self) -> bool:
        return self.finish_reason == "stop"

    @property
    def question(self) -> tuple[str, bool, str]:
        """Which question, and with or without documents; the samples of it share this."""
        return self.benchmark, self.documents, self.record_id

    def line(self) -> str:
        """As it is written, without a newline. Half a surrogate pair, which is no JSON, becomes "?"."""
        return json.dumps(self.model_dump(), ensure_ascii=False).encode("utf-8", "replace").decode()


def read_results(path: Path) -> list[SampleResult]:
    """Raises ResultsError at the first line that is no result, and at a sample that stands twice.

    A last line that is cut off, which a killed run may leave, is one too: the run that goes on mends it.
    """
    try:
        with path.open("rb") as file:
            return list(_checked(file, str(path)))
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}; give a results file of `evaluate`") from None


def _checked(lines: Iterable[bytes], name: str) -> Iterator[SampleResult]:
    seen: dict[tuple, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _parsed(line, f"{name}:{number}")
        first = seen.setdefault((*found.question, found.sample), number)
        if first != number:
            what = f"sample {found.sample} of {found.benchmark} {found.record_id!r}"
            raise ResultsError(f"{name}:{number}: {what} stands in line {first} already")
        yield found
    if not seen:
        raise ResultsError(f"{name}: holds no result")


def _parsed(line: bytes, where: str) -> SampleResult:
    try:
        return SampleResult.model_validate_json(line)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"])) or "the line"
        shown = repr(fault["input"])[:60]
        raise ResultsError(f"{where}: {field} = {shown}: {fault['msg'].removeprefix('Value error, ')}") from None
