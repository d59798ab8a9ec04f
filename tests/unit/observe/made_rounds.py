"""Rounds for the tests of this room."""

import numpy as np

from megatron_spell.types.play import (
    Answer,
    Completion,
    Draw,
    Judgment,
    Outcome,
    ParsedQuestion,
    Role,
    Round,
    TaskName,
    Turn,
)


def make_turn(role: Role, num_tokens: int = 3, finish_reason: str = "stop", text: str = "text") -> Turn:
    ids = np.arange(num_tokens, dtype=np.int32)
    completion = Completion(ids, np.full(num_tokens, -0.5, np.float32), finish_reason, version=7)
    return Turn(role, np.array([5, 6], dtype=np.int32), completion, text)


def make_votes(*votes: bool | None) -> tuple[Judgment, ...]:
    return tuple(Judgment(make_turn(Role.VERIFIER, 2), vote, reward=float(vote is True)) for vote in votes)


def make_answer(rule: float, reward: float, votes=(), majority=None, parsed="4", **turn) -> Answer:
    return Answer(make_turn(Role.RESPONDER, **turn), parsed, rule, majority, reward, votes)


def make_round(outcome: Outcome = Outcome.USABLE, answers_G=(), index: int = 0, **fields) -> Round:
    draw = Draw(index, "set-1", fields.pop("task", TaskName.GENERAL_QA), (0, 2), (0, 1, 2))
    fields = {"ask": make_turn(Role.QUESTIONER, 9), "question": ParsedQuestion("Who?", "Ada")} | fields
    return Round(draw, outcome, answers_G=tuple(answers_G), **fields)
