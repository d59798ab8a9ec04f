import json

from megatron_spell.observe.transcripts import write_rounds
from megatron_spell.types.play import (
    Distractor,
    Draw,
    Outcome,
    ParsedQuestion,
    QuestionAnswer,
    Role,
    Round,
    TaskName,
)
from tests.unit.observe.made_rounds import make_answer, make_round, make_turn, make_votes


def decode(ids) -> str:
    return "<" + " ".join(map(str, ids)) + ">"


def written(path, rounds) -> list[dict]:
    write_rounds(path, rounds, decode)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_round_is_written_with_all_that_was_said(tmp_path):
    votes = make_votes(True, None)
    answers_G = [make_answer(0.0, 1.0, votes, 1.0), make_answer(0.0, 1.0, votes, 1.0), make_answer(1.0, 1.0)]
    played = make_round(
        answers_G=answers_G,
        question_reward=0.5,
        blind_solve_rate=0.25,
        blind_turns=(make_turn(Role.RESPONDER, text="blind"),),
        question=ParsedQuestion("Which?", "B", ("w", "x", "y", "z")),
        task=TaskName.MULTIPLE_CHOICE,
    )
    (record,) = written(tmp_path / "rounds.jsonl", [played])
    assert record["outcome"] == "usable"
    assert (record["question_reward"], record["blind_solve_rate"], record["solve_rate"]) == (0.5, 0.25, 1.0)
    assert record["question"] == {"question": "Which?", "gold": "B", "options": ["w", "x", "y", "z"]}
    assert record["ask"] == {
        "role": "questioner",
        "prompt": "<5 6>",
        "output": "text",
        "prompt_tokens": 2,
        "output_tokens": 9,
        "finish_reason": "stop",
        "version": 7,
    }
    assert [turn["output"] for turn in record["blind"]] == ["blind"]
    first, second, third = record["answers"]
    assert [(vote["vote"], vote["reward"], vote["turn"]["role"]) for vote in first["votes"]] == [
        (True, 1.0, "verifier"),
        (None, 0.0, "verifier"),
    ]
    assert second["same_votes_as"] == 0 and "votes" not in second
    assert third["votes"] == [] and third["majority"] is None
    assert (first["rule"], first["majority"], first["reward"], first["parsed"]) == (0.0, 1.0, 1.0, "4")


def test_the_draw_is_written(tmp_path):
    examples = (QuestionAnswer("Who?", "Ada"),)
    others = (Distractor(0, "set-9", 7), Distractor(2, "set-8", 0))
    draw = Draw(
        12, "set-3", TaskName.MULTIPLE_CHOICE, (1, 4), (1, 2, 4), examples, "C", distractors=others, budget_tokens=4096
    )
    (record,) = written(tmp_path / "rounds.jsonl", [Round(draw, Outcome.PROMPT_TOO_LONG)])
    assert record["draw"] == {
        "index": 12,
        "set": "set-3",
        "task": "multiple_choice",
        "shown": [1, 4],
        "answer_from": [1, 2, 4],
        "distractors": [{"place": 0, "set": "set-9", "document": 7}, {"place": 2, "set": "set-8", "document": 0}],
        "budget_tokens": 4096,
        "examples": [{"question": "Who?", "answer": "Ada"}],
        "target_letter": "C",
    }
    assert record["ask"] is None and record["question"] is None and record["solve_rate"] is None


def test_one_line_a_round_and_a_second_writing_replaces(tmp_path):
    path = tmp_path / "rounds.jsonl"
    assert len(written(path, [make_round(index=index) for index in range(3)])) == 3
    assert [record["draw"]["index"] for record in written(path, [make_round(index=8)])] == [8]


def test_nan_becomes_null_and_any_text_is_kept(tmp_path):
    played = make_round(question_reward=float("nan"), ask=make_turn(Role.QUESTIONER, text="a\n\u2028\udc80 東"))
    (record,) = (json.loads(line) for line in _lines(tmp_path, played))
    assert record["question_reward"] is None
    assert record["ask"]["output"] == "a\n\u2028\udc80 東"


def _lines(folder, played) -> list[bytes]:
    write_rounds(folder / "rounds.jsonl", [played], decode)
    return (folder / "rounds.jsonl").read_bytes().split(b"\n")[:-1]
