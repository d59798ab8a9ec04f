"""One round: ask, check that the question needs the documents, answer, judge, score.

Whatever can go on goes on: an answer is scored and judged when it is there, however long the others of its group take.
What comes of a round is the same in whichever order its samples come.
"""

from dataclasses import replace

from megatron_spell.rewards.assign import assign_rewards
from megatron_spell.roles.questioner import parse_question, questioner_prompt
from megatron_spell.rollout.engine import PromptTooLong
from megatron_spell.selfplay.answers import answer_and_judge, blind_answers
from megatron_spell.selfplay.table import Table
from megatron_spell.types.play import Draw, Outcome, ParsedQuestion, Role, Round, Turn


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
    if table.config.play.ground_samples and draw.given is None:
        blind_turns, rate, ungrounded = await blind_answers(draw, question, table)
        asked = replace(asked, blind_turns=blind_turns, blind_solve_rate=rate)
        if ungrounded:
            return replace(asked, outcome=Outcome.UNGROUNDED, question_reward=rewards.ungrounded)
    answers_G = await answer_and_judge(draw, question, table)
    return assign_rewards(replace(asked, answers_G=answers_G), rewards)


async def ask(draw: Draw, table: Table) -> tuple[Turn, ParsedQuestion | Outcome]:
    """The questioner's one sample, and the question in it or how it failed."""
    documents = table.documents(draw, draw.shown)
    prompt = questioner_prompt(table.templates, draw.task, documents, draw.examples, draw.target_letter)
    turn = await table.speaker(Role.QUESTIONER, prompt, draw=draw, purpose="ask", key=draw.set_id).say_one(0)
    parsed = parse_question(
        turn.text,
        draw.task,
        finished=turn.finished,
        num_answer_tokens=lambda text: len(table.tokenizer.encode_quoted(text)),
        max_answer_tokens=table.config.play.max_answer_tokens,
    )
    return turn, parsed
