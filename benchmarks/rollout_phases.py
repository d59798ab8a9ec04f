"""The same rounds in four blocking phases: what is asked in each, and the playing of it.

The rounds are known beforehand, so a phase costs what its requests cost the engine and nothing else: no parsing, no
scoring, and none of the weight syncs and the sleeping between the phases of the reference. All of it favours phases.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_spell.roles.verifier import verifier_prompt
from megatron_spell.rollout.engine import Engine, SamplingSpec
from megatron_spell.rollout.scripted import Reply
from megatron_spell.selfplay.table import Table
from megatron_spell.types.play import Answer, Outcome, Role, Round, Turn
from megatron_spell.types.seeds import stream_seed


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    role: Role
    prompt_ids_T: np.ndarray
    n: int
    first: int = 0


Phase = list[Request]


def same_requests(rounds: Sequence[Round], table: Table) -> list[Phase]:
    """Just what the rounds hold, our savings in votes and blind answers included."""
    votes = (
        _request([vote.turn for vote in answer.judgments_V])
        for played in rounds
        for answer in _distinct(played.answers_G)
        if answer.judgments_V
    )
    return [
        [_request([played.ask]) for played in rounds if played.ask is not None],
        [_request(played.blind_turns) for played in rounds if played.blind_turns],
        [_request([answer.turn for answer in played.answers_G]) for played in rounds if played.answers_G],
        list(votes),
    ]


def reference_requests(rounds: Sequence[Round], table: Table) -> list[Phase]:
    """What the reference asks for: one blind answer, and all votes on every answer that could be parsed, of all tasks.

    Its decision on the ground check is taken for ours: the rounds are the same.
    """
    ask, _, answer, _ = same_requests(rounds, table)
    blind = [_request(played.blind_turns[:1]) for played in rounds if played.blind_turns]
    return [ask, blind, answer, [vote for played in rounds for vote in _all_votes(played, table)]]


def _all_votes(played: Round, table: Table) -> Iterator[Request]:
    """Answers that parsed to the same text are asked on each by itself."""
    num_votes = table.config.play.votes_per_answer
    for number, answer in enumerate(played.answers_G):
        if answer.parsed is not None and played.question is not None:
            prompt = verifier_prompt(table.templates, played.question, answer.parsed)
            yield Request(Role.VERIFIER, table.chat.encode(prompt), num_votes, first=number * num_votes)


def _distinct(answers_G: Iterable[Answer]) -> list[Answer]:
    return list({answer.parsed: answer for answer in answers_G}.values())


def _request(turns: Sequence[Turn | None]) -> Request:
    first = next(turn for turn in turns if turn is not None)
    return Request(first.role, first.prompt_ids_T, len(turns))


def spec_of(request: Request, table: Table) -> SamplingSpec:
    sampling = table.config.sampling
    return SamplingSpec(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens.of(request.role),
        seed=stream_seed(table.config.seed, request.prompt_ids_T.tobytes().hex()),
        n=request.n,
        stop_ids=table.tokenizer.stop_ids,
        first=request.first,
    )


async def play_phases(phases: Iterable[Phase], table: Table, engine: Engine) -> None:
    """One phase after the other, each to its last token."""
    for phase in phases:
        await asyncio.gather(*(engine.generate(r.prompt_ids_T, spec_of(r, table)) for r in phase))


def num_tokens(phases: Iterable[Phase], table: Table, reply: Reply) -> int:
    """How many tokens the phases take, by the script."""
    return sum(
        len(reply(r.prompt_ids_T, spec_of(r, table), i))
        for phase in phases
        for r in phase
        for i in range(r.first, r.first + r.n)
    )


def num_usable(rounds: Sequence[Round]) -> int:
    return sum(played.outcome == Outcome.USABLE for played in rounds)


def most_reference_rows(rounds: Sequence[Round], quota: int, num_answers: int, num_votes: int) -> int:
    """The rows that the reference trains on, at most: all answers, 1 question and 1 failed one, an eighth in votes."""
    usable = min(quota, num_usable(rounds))
    failed = min(usable, len(rounds) - num_usable(rounds))
    return usable * num_answers + usable + failed + usable * num_answers // (8 * num_votes) * num_votes
