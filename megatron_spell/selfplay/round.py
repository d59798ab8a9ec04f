"""One round: ask, check that the question needs the documents, answer, judge, score."""

import asyncio
from dataclasses import replace

import numpy as np

from megatron_spell.rewards.assign import assign_rewards
from megatron_spell.rewards.matching import guess_rate, score
from megatron_spell.rewards.voting import settled
from megatron_spell.roles.questioner import parse_question, questioner_prompt
from megatron_spell.roles.responder import parse_answer, responder_prompt
from megatron_spell.roles.verifier import parse_vote, verifier_prompt
from megatron_spell.rollout.engine import PromptTooLong
from megatron_spell.selfplay.table import Table
from megatron_spell.types.play import (
    Answer,
    Draw,
    Judgment,
    Outcome,
    ParsedQuestion,
    Role,
    Round,
    TaskName,
    Turn,
)
from megatron_spell.types.seeds import stream_seed


async def play_round(draw: Draw, table: Table) -> Round:
    """All that comes of one draw. Raises only what the engine raises; everything else is an Outcome."""
    try:
        asked = await _asked(draw, table)
    except PromptTooLong:
        return Round(draw, Outcome.PROMPT_TOO_LONG)
    question = asked.question
    if question is None:
        return asked
    try:
        return await _answer_and_judge(asked, question, table)
    except PromptTooLong:
        return replace(asked, outcome=Outcome.PROMPT_TOO_LONG)


async def _asked(draw: Draw, table: Table) -> Round:
    """The round so far: with its question, or ended without one."""
    if draw.given is not None:
        return Round(draw, Outcome.UNSOLVED, question=draw.given)
    turn, question = await ask(draw, table)
    if isinstance(question, Outcome):
        return Round(draw, question, ask=turn, question_reward=table.config.rewards.bad_format)
    return Round(draw, Outcome.UNSOLVED, ask=turn, question=question)


async def _answer_and_judge(asked: Round, question: ParsedQuestion, table: Table) -> Round:
    rewards, draw = table.config.rewards, asked.draw
    blind_turns = await answer_blind(draw, question, table)
    if blind_turns:
        rate = blind_solve_rate(blind_turns, question, draw.task, rewards.numeric_tolerance)
        asked = replace(asked, blind_turns=blind_turns, blind_solve_rate=rate)
        if rate >= guess_rate(draw.task) + table.config.play.ground_margin:
            return replace(asked, outcome=Outcome.UNGROUNDED, question_reward=rewards.ungrounded)
    answers_G = await answer(draw, question, table)
    answers_G = await judge(draw, question, answers_G, table)
    return assign_rewards(replace(asked, answers_G=answers_G), rewards)


async def ask(draw: Draw, table: Table) -> tuple[Turn, ParsedQuestion | Outcome]:
    """The questioner's one sample, and the question in it or how it failed."""
    documents = table.documents(draw, draw.shown)
    prompt = questioner_prompt(table.templates, draw.task, documents, draw.examples, draw.target_letter)
    (turn,) = await table.speak(Role.QUESTIONER, prompt, n=1, draw=draw, purpose="ask")
    parsed = parse_question(
        turn.text,
        draw.task,
        finished=turn.finished,
        num_answer_tokens=lambda text: len(table.tokenizer.encode_quoted(text)),
        max_answer_tokens=table.config.play.max_answer_tokens,
    )
    return turn, parsed


async def answer_blind(draw: Draw, question: ParsedQuestion, table: Table) -> tuple[Turn, ...]:
    """k answers without any document; empty when the ground check is off or the question was given."""
    num_samples = table.config.play.ground_samples
    if not num_samples or draw.given is not None:
        return ()
    prompt = responder_prompt(table.templates, draw.task, None, question)
    return tuple(await table.speak(Role.RESPONDER, prompt, n=num_samples, draw=draw, purpose="blind"))


def blind_solve_rate(turns: tuple[Turn, ...], question: ParsedQuestion, task: TaskName, tolerance: float) -> float:
    return float(np.mean([_scored(turn, question, task, tolerance).rule for turn in turns]))


async def answer(draw: Draw, question: ParsedQuestion, table: Table) -> tuple[Answer, ...]:
    """G answers from the documents, with the rule's verdict on each."""
    prompt = responder_prompt(table.templates, draw.task, table.documents(draw, draw.answer_from), question)
    num_answers = table.config.play.answers_per_question
    turns = await table.speak(Role.RESPONDER, prompt, n=num_answers, draw=draw, purpose="answer")
    return tuple(_scored(turn, question, draw.task, table.config.rewards.numeric_tolerance) for turn in turns)


def _scored(turn: Turn, question: ParsedQuestion, task: TaskName, tolerance: float) -> Answer:
    parsed = parse_answer(turn.text, task, finished=turn.finished)
    return Answer(turn, parsed, rule=score(task, parsed, question.gold, tolerance=tolerance))


async def judge(
    draw: Draw, question: ParsedQuestion, answers_G: tuple[Answer, ...], table: Table
) -> tuple[Answer, ...]:
    """The answers with the votes that can change something; answers that parsed to the same text share theirs."""
    wanted = to_judge(draw, answers_G, table)
    votes = await asyncio.gather(*(_vote(draw, question, text, table) for text in wanted))
    judged = dict(zip(wanted, votes))
    return tuple(replace(a, judgments_V=judged.get(a.parsed or "", ())) for a in answers_G)


def to_judge(draw: Draw, answers_G: tuple[Answer, ...], table: Table) -> list[str]:
    """The distinct parsed answers that votes are asked on, in order of first appearance.

    A vote cannot change the reward of a right answer, nor of a letter. Right answers are judged all the same in a
    share of the rounds while the verifier is trained: shown wrong ones alone, it would learn to say no always.
    """
    if draw.task == TaskName.MULTIPLE_CHOICE or not table.config.play.votes_per_answer:
        return []
    distinct = {a.parsed: a.rule for a in answers_G if a.parsed}
    wrong = [text for text, rule in distinct.items() if not rule]
    right = [text for text, rule in distinct.items() if rule]
    return wrong + right[: _num_right_to_judge(draw, table)]


def _num_right_to_judge(draw: Draw, table: Table) -> int:
    if Role.VERIFIER not in table.config.algo.train_roles:
        return 0
    rng = np.random.default_rng(stream_seed(table.config.seed, draw.index, "judge-right"))
    return int(rng.random() < table.config.play.judge_right_share)


async def _vote(draw: Draw, question: ParsedQuestion, text: str, table: Table) -> tuple[Judgment, ...]:
    """V votes on one answer; only as many as settle the majority when the verifier is not trained."""
    num_votes = table.config.play.votes_per_answer
    prompt = verifier_prompt(table.templates, question, text)
    waves = [num_votes] if Role.VERIFIER in table.config.algo.train_roles else _waves(num_votes)
    judgments: list[Judgment] = []
    for number, size in enumerate(waves):
        turns = await table.speak(Role.VERIFIER, prompt, n=size, draw=draw, purpose=f"judge {number} {text}")
        judgments += [Judgment(turn, parse_vote(turn.text, finished=turn.finished)) for turn in turns]
        if settled([j.vote for j in judgments], num_votes):
            break
    return tuple(judgments)


def _waves(num_votes: int) -> list[int]:
    """The smallest number of votes that can settle the majority, then the rest."""
    first = num_votes // 2 + 1
    return [first, num_votes - first] if num_votes > first else [num_votes]
