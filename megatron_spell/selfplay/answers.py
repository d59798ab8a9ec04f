"""The responder in a round: blind answers for the ground check, and the answers that are scored."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from megatron_spell.rewards.matching import guess_rate, score
from megatron_spell.roles.responder import parse_answer, responder_prompt
from megatron_spell.selfplay.jury import Jury
from megatron_spell.selfplay.table import Speaker, Table
from megatron_spell.selfplay.together import all_of, as_needed
from megatron_spell.types.play import Answer, Draw, ParsedQuestion, Role, TaskName, Turn


async def blind_answers(draw: Draw, question: ParsedQuestion, table: Table) -> tuple[tuple[Turn, ...], float, bool]:
    """Answers without any document, the share of `play.ground_samples` that they solved, and whether that is too much.

    All samples are begun at once; they are heard in sample order until no later one can change the decision, and the
    rest is aborted unheard. So what is recorded does not depend on which came first, and the share is a lower bound of
    what all samples would have solved, on the same side of the threshold.
    """
    num_samples = table.config.play.ground_samples
    too_much = guess_rate(draw.task) + table.config.play.ground_margin_of(draw.task)
    prompt = responder_prompt(table.templates, draw.task, None, question)
    speaker = table.speaker(Role.RESPONDER, prompt, draw=draw, purpose="blind")
    heard: list[Turn] = []
    num_solved = 0
    async with as_needed(speaker.say_one(i) for i in range(num_samples)) as samples:
        for sample in samples:
            heard.append(await sample)
            num_solved += bool(_scored(heard[-1], question, draw.task, table).rule)
            num_left = num_samples - len(heard)
            if num_solved / num_samples >= too_much or (num_solved + num_left) / num_samples < too_much:
                break
    rate = num_solved / num_samples
    return tuple(heard), rate, rate >= too_much


async def answer_and_judge(draw: Draw, question: ParsedQuestion, table: Table) -> tuple[Answer, ...]:
    """G answers from the documents, in sample order, each scored, and judged where that matters, once it is there."""
    documents = table.reading(draw)
    prompt = responder_prompt(table.templates, draw.task, documents, question)
    speaker = table.speaker(Role.RESPONDER, prompt, draw=draw, purpose="answer", key=draw.set_id)
    async with all_of() as group:
        turns_G = _samples(speaker, group, table)
        answers_G = [group.create_task(_score_when_there(turn, question, draw.task, table)) for turn in turns_G]
        jury = Jury(draw, question, table, group)
        jury.judge(answers_G)
    return tuple(jury.with_votes(answer.result()) for answer in answers_G)


def _samples(speaker: Speaker, group: asyncio.TaskGroup, table: Table) -> list[Coroutine[Any, Any, Turn]]:
    """The G samples, each by itself as soon as it is written.

    Where expert choices are replayed they come together: an engine gives those of the prompt once for each request.
    """
    num_answers = table.config.play.answers_per_question
    if table.config.policy.moe.routing_replay == "never":
        return [speaker.say_one(i) for i in range(num_answers)]
    together = group.create_task(speaker.say(n=num_answers))
    return [_nth(together, i) for i in range(num_answers)]


async def _nth(turns: asyncio.Task[list[Turn]], number: int) -> Turn:
    return (await turns)[number]


async def _score_when_there(
    turn: Coroutine[Any, Any, Turn], question: ParsedQuestion, task: TaskName, table: Table
) -> Answer:
    return _scored(await turn, question, task, table)


def _scored(turn: Turn, question: ParsedQuestion, task: TaskName, table: Table) -> Answer:
    parsed = parse_answer(turn.text, task, finished=turn.finished)
    tolerance = table.config.rewards.numeric_tolerance
    return Answer(turn, parsed, rule=score(task, parsed, question.gold, tolerance=tolerance))
