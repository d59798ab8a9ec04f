"""Rounds as they were played, in words: one JSON object a round."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megatron_spell.observe.files import json_line, write_whole
from megatron_spell.types.play import Answer, Draw, ParsedQuestion, Round, Turn

Decode = Callable[[np.ndarray], str]


def write_rounds(path: Path, rounds: Sequence[Round], decode: Decode) -> None:
    """Write `rounds` to `path` (JSONL), whole or not at all; an older file there is replaced.

    `decode` turns prompt token ids into text (`Tokenizer.decode`). Votes that several answers share stand with the
    first of them, the others name it in `same_votes_as`. NaN and infinities are written as null.
    """
    write_whole(path, (json_line(describe_round(played, decode)) for played in rounds))


def describe_round(played: Round, decode: Decode) -> dict:
    """The JSON-able record of one round."""
    return {
        "draw": _draw(played.draw),
        "outcome": played.outcome,
        "question_reward": played.question_reward,
        "solve_rate": played.solve_rate if played.answers_G else None,
        "blind_solve_rate": played.blind_solve_rate,
        "question": _question(played.question) if played.question else None,
        "ask": _turn(played.ask, decode) if played.ask else None,
        "blind": [_turn(turn, decode) for turn in played.blind_turns],
        "answers": [_answer(number, played.answers_G, decode) for number in range(len(played.answers_G))],
    }


def _draw(draw: Draw) -> dict:
    return {
        "index": draw.index,
        "set": draw.set_id,
        "task": draw.task,
        "shown": draw.shown,
        "answer_from": draw.answer_from,
        "distractors": [{"place": d.place, "set": d.set_id, "document": d.document} for d in draw.distractors],
        "budget_tokens": draw.budget_tokens,
        "examples": [{"question": example.question, "answer": example.answer} for example in draw.examples],
        "target_letter": draw.target_letter,
    }


def _question(question: ParsedQuestion) -> dict:
    return {"question": question.question, "gold": question.gold, "options": question.options}


def _turn(turn: Turn, decode: Decode) -> dict:
    return {
        "role": turn.role,
        "prompt": decode(turn.prompt_ids_T),
        "output": turn.text,
        "prompt_tokens": turn.prompt_ids_T.size,
        "output_tokens": turn.completion.token_ids_T.size,
        "finish_reason": turn.completion.finish_reason,
        "version": turn.completion.version,
    }


def _answer(number: int, answers_G: Sequence[Answer], decode: Decode) -> dict:
    answer = answers_G[number]
    record = {
        "turn": _turn(answer.turn, decode),
        "parsed": answer.parsed,
        "rule": answer.rule,
        "majority": answer.majority,
        "reward": answer.reward,
    }
    first = next((n for n in range(number) if answers_G[n].judgments_V is answer.judgments_V), number)
    if answer.judgments_V and first < number:
        return record | {"same_votes_as": first}
    votes = [{"vote": j.vote, "reward": j.reward, "turn": _turn(j.turn, decode)} for j in answer.judgments_V]
    return record | {"votes": votes}
