"""`megatron-spell score`: try the scorers on your own outputs. Heavy imports happen inside the command."""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from megatron_spell.cli.refusal import refuse

STDIN = "-"
_SHOWN_CHARS = 60
_WAYS_OUT = {
    "math_qa": "write it as one number, as in -5.2, 12.5% or 5.2 million",
    "multiple_choice": "write A, B, C or D",
    "general_qa": "write a short text, of at most 2000 characters",
}


class LineError(ValueError):
    """A line cannot be scored; the message names the field, its value and the way out."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """Adds `score` to an object with task, prediction and gold; with `responses` also `parsed`."""

    tolerance: float
    responses: bool

    def scored(self, record: dict[str, Any]) -> dict[str, Any]:
        """Raises LineError for an object that cannot be scored."""
        from megatron_spell.rewards.matching import score
        from megatron_spell.roles.responder import parse_answer

        task, prediction, gold = self._fields(record)
        if not self.responses:
            return record | {"score": score(task, prediction, gold, tolerance=self.tolerance)}
        finished = record.get("finished", True)
        if not isinstance(finished, bool):
            raise LineError(f"finished = {_shown(finished)}: must be true or false (false: the response was cut off)")
        parsed = None if prediction is None else parse_answer(prediction, task, finished=finished)
        return record | {"parsed": parsed, "score": score(task, parsed, gold, tolerance=self.tolerance)}

    def _fields(self, record: dict[str, Any]):
        from megatron_spell.rewards.matching import score
        from megatron_spell.types.play import TaskName

        for field in ("task", "prediction", "gold"):
            if field not in record:
                raise LineError(f"{field}: is missing; each object needs task, prediction and gold")
        task, gold = record["task"], _text(record, "gold")
        if task not in list(TaskName):
            raise LineError(f"task = {_shown(task)}: is none; use {', '.join(TaskName)}")
        if not gold.strip() or not score(TaskName(task), gold, gold, tolerance=0.0):
            raise LineError(f"gold = {_shown(gold)}: no prediction could match it in {task}; {_WAYS_OUT[task]}")
        return TaskName(task), None if record["prediction"] is None else _text(record, "prediction"), gold


def score(
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl", help="One object a line; - reads standard input")],
    responses: Annotated[
        bool,
        typer.Option("--responses", help="Predictions are whole responses: read the final answer first, as in play"),
    ] = False,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Of numbers, relative to the gold's")
    ] = 0.0015,  # rewards.numeric_tolerance's default
    summary: Annotated[
        bool | None, typer.Option("--summary/--no-summary", help="Mean score of each task on standard error")
    ] = None,
) -> None:
    """Print each object (task, prediction, gold) with its score, 1.0 or 0.0.

    The task is general_qa, math_qa or multiple_choice. A prediction is scored as it stands; null scores 0. With
    --responses it is read as a responder's output is, `parsed` is added, and `"finished": false` marks one that was cut
    off. A file with a bad line is refused before anything is printed, standard input when the line comes. The summary
    is shown where standard output is a terminal.
    """
    if not 0 <= tolerance < 1:  # nan is not
        refuse(f"--tolerance {tolerance}: must be at least 0 and below 1, as in 0.0015")
    scorer, tallies = Scorer(tolerance, responses), {}
    try:
        if file != STDIN and Path(file).is_file():
            for _ in _scored_lines(file, scorer):
                pass
        _print_lines(_scored_lines(file, scorer), tallies, flush=file == STDIN)
    except LineError as error:
        refuse(str(error))
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if sys.stdout.isatty() if summary is None else summary:
        _print_summary(tallies, responses)


def _scored_lines(file: str, scorer: Scorer) -> Iterator[dict[str, Any]]:
    """The objects of `file` with their scores. Raises LineError, with file and line in front."""
    num_scored = 0
    try:
        with _opened(file) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _scored_line(line, scorer, f"{_name(file)}:{number}")
                    num_scored += 1
    except BrokenPipeError:
        raise
    except OSError as error:
        raise LineError(f"{_name(file)}: cannot be read: {error.strerror}; give a .jsonl file or -") from None
    if not num_scored:
        raise LineError(f"{_name(file)}: holds no object; write one a line with task, prediction and gold")


def _opened(file: str) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if file == STDIN else Path(file).open("rb")


def _name(file: str) -> str:
    return "standard input" if file == STDIN else file


def _scored_line(line: bytes, scorer: Scorer, where: str) -> dict[str, Any]:
    try:
        return scorer.scored(_parsed_line(line))
    except LineError as error:
        raise LineError(f"{where}: {error}") from None


def _parsed_line(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError:
        raise LineError("is not UTF-8; convert the file") from None
    except LineError:
        raise
    except (ValueError, RecursionError) as error:
        raise LineError(f"is not JSON ({error}); write one object a line") from None
    if not isinstance(record, dict):
        raise LineError(f"is {_shown(record)}; write an object with task, prediction and gold")
    return record


def _refuse_constant(name: str) -> float:
    raise LineError(f"{name} is not JSON; write a number or null")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise LineError(f"{digits} is too large a number; write it as text")
    return value


def _text(record: dict[str, Any], field: str) -> str:
    value = record[field]
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LineError(f"{field} = {_shown(value)}: must be a text or a number")
    return repr(value)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


@dataclass(slots=True)
class _Tally:
    num_scored: int = 0
    num_read: int = 0
    total: float = 0.0


def _print_lines(records: Iterator[dict[str, Any]], tallies: dict[str, _Tally], *, flush: bool) -> None:
    for record in records:
        line = json.dumps(record, ensure_ascii=False)
        try:
            line.encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON may carry as an escape
            line = json.dumps(record)
        print(line, flush=flush)
        tally = tallies.setdefault(record["task"], _Tally())
        tally.num_scored += 1
        tally.num_read += record.get("parsed") is not None
        tally.total += record["score"]
    sys.stdout.flush()


def _print_summary(tallies: dict[str, _Tally], responses: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*("task", "objects", "mean score"), *(("answers read",) if responses else ()))
    for task, tally in sorted(tallies.items()):
        cells = [task, str(tally.num_scored), f"{tally.total / tally.num_scored:.1%}"]
        table.add_row(*cells, *([f"{tally.num_read / tally.num_scored:.1%}"] if responses else []))
    Console(stderr=True, highlight=False).print(table)
