"""Questions with known answers, read from JSONL: one object a line with set_id, task, question, gold (and options)."""

import json
from dataclasses import dataclass
from pathlib import Path

from megatron_spell.types.play import LETTERS, ParsedQuestion, TaskName


class QuestionsError(ValueError):
    """A questions file cannot be used; the message names file, line and fault."""


@dataclass(frozen=True, slots=True)
class KnownQuestion:
    """`documents` are the indices shown from the set; None shows the whole set."""

    set_id: str
    task: TaskName
    question: ParsedQuestion
    documents: tuple[int, ...] | None = None


def load_questions(path: Path) -> list[KnownQuestion]:
    """Every line of `path`. Raises QuestionsError at the first that is not a question; none is dropped."""
    questions = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionsError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            questions.append(_parse(line, f"{path}:{number}"))
    if not questions:
        raise QuestionsError(f"{path}: holds no question")
    return questions


def _options(raw: dict) -> tuple[str, str, str, str]:
    a, b, c, d = (str(raw[letter]) for letter in LETTERS)
    return a, b, c, d


def _parse(line: str, where: str) -> KnownQuestion:
    try:
        raw = json.loads(line)
        return KnownQuestion(
            set_id=str(raw["set_id"]),
            task=TaskName(raw["task"]),
            question=ParsedQuestion(
                question=str(raw["question"]),
                gold=str(raw["gold"]),
                options=None if raw.get("options") is None else _options(raw["options"]),
            ),
            documents=None if raw.get("documents") is None else tuple(int(i) for i in raw["documents"]),
        )
    except KeyError as missing:
        raise QuestionsError(f"{where}: lacks {missing}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise QuestionsError(f"{where}: {error}") from None
