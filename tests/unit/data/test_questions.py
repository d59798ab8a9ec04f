import json

import pytest

from megatron_spell.data.questions import QuestionsError, load_questions
from megatron_spell.types.play import TaskName

GOOD = {"set_id": "s", "task": "general_qa", "question": "q?", "gold": "g"}


def write(tmp_path, *lines: str):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_every_line_is_read(tmp_path):
    choice = GOOD | {"task": "multiple_choice", "gold": "B", "options": dict(zip("ABCD", "wxyz")), "documents": [0, 2]}
    first, second = load_questions(write(tmp_path, json.dumps(GOOD), "", json.dumps(choice)))
    assert first.documents is None
    assert second.task is TaskName.MULTIPLE_CHOICE
    assert second.question.options == ("w", "x", "y", "z")
    assert second.documents == (0, 2)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "questions.jsonl:2: "),
        ("[]", "questions.jsonl:2: "),
        (json.dumps({**GOOD, "task": "poetry"}), "'poetry' is not a valid TaskName"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "gold"}), "lacks 'gold'"),
        (json.dumps({**GOOD, "options": {"A": "only"}}), "lacks 'B'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, expected):
    with pytest.raises(QuestionsError, match=expected):
        load_questions(write(tmp_path, json.dumps(GOOD), line))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(QuestionsError, match="holds no question"):
        load_questions(write(tmp_path, ""))
    with pytest.raises(QuestionsError, match="cannot be read"):
        load_questions(tmp_path / "none.jsonl")
