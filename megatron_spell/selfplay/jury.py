"""The verifier in a round: which answers are voted on, with how many votes, and when asking ends."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_spell.config.schema import RunConfig
from megatron_spell.rewards.voting import least_to_settle
from megatron_spell.roles.verifier import parse_vote, verifier_prompt
from megatron_spell.selfplay.table import Table
from megatron_spell.types.play import Answer, Draw, Judgment, ParsedQuestion, Role, TaskName
from megatron_spell.types.seeds import stream_seed

# Asked with all their votes are the groups of so many times the questions that algo.verifier_groups_per_step stand for:
# two of three tasks are judged, and a question has some 2.5 distinct wrong answers, of which 20-30 % are fit to be
# trained on. So a question brings a third to a half of a group, and four questions more than one.
QUESTIONS_PER_GROUP = 4


def full_votes_share(config: RunConfig) -> float:
    """The share of the rounds in which every answer that is judged gets all V votes; 0 where no verifier is trained."""
    if Role.VERIFIER not in config.algo.train_roles:
        return 0.0
    if config.play.full_votes_share is not None:
        return config.play.full_votes_share
    return min(1.0, QUESTIONS_PER_GROUP * config.algo.verifier_groups_per_step / config.play.questions_per_step)


class Jury:
    """The votes of one round, one group for each distinct text that the answers parsed to.

    A vote cannot change the reward of a right answer, nor of a letter, and there is nothing to ask about an answer that
    could not be parsed. The first right answer is judged all the same in `play.judge_right_share` of the rounds with
    full votes: shown wrong ones alone, a verifier learns to say no always.

    In the rounds without full votes asking ends once the majority is settled. Whether a round has full votes is drawn
    by its number, before anything of it is known, so the groups to be trained on are like all others.
    """

    def __init__(self, draw: Draw, question: ParsedQuestion, table: Table, group: asyncio.TaskGroup):
        self._draw, self._question, self._table, self._group = draw, question, table, group
        self._votes: dict[str, tuple[Judgment, ...]] = {}
        self._all_votes = self._drawn("full-votes", full_votes_share(table.config))
        self._right_too = self._all_votes and self._drawn("judge-right", table.config.play.judge_right_share)

    def judge(self, answers_G: Sequence[asyncio.Task[Answer]]) -> None:
        """Ask for votes as the answers come; the group ends when the last vote is there."""
        if self._draw.task == TaskName.MULTIPLE_CHOICE or not self._table.config.play.votes_per_answer:
            return
        for answer in answers_G:
            self._group.create_task(self._judge_if_wrong(answer))
        if self._right_too:
            self._group.create_task(self._judge_first_right(answers_G))

    def with_votes(self, answer: Answer) -> Answer:
        """The answer with the votes on what it parsed to."""
        judgments_V = self._votes.get(answer.parsed or "", ())
        return replace(answer, judgments_V=judgments_V, stop_when_settled=bool(judgments_V) and not self._all_votes)

    async def _judge_if_wrong(self, coming: asyncio.Task[Answer]) -> None:
        answer = await coming
        if answer.parsed and not answer.rule and answer.parsed not in self._votes:
            await self._ask(answer.parsed)

    async def _judge_first_right(self, answers_G: Sequence[asyncio.Task[Answer]]) -> None:
        """The first in sample order, whichever came first."""
        for coming in answers_G:
            answer = await coming
            if answer.parsed and answer.rule:
                await self._ask(answer.parsed)
                return

    async def _ask(self, text: str) -> None:
        """Votes on one text, seeded by it: the first answer that parsed to it asks for all of them.

        Unless all are wanted, they come in waves, each the least that can settle the majority. So no vote is begun that
        is not needed, and none has to be aborted; the votes of a wave are asked in one request.
        """
        self._votes[text] = ()
        num_votes = self._table.config.play.votes_per_answer
        prompt = verifier_prompt(self._table.templates, self._question, text)
        speaker = self._table.speaker(Role.VERIFIER, prompt, draw=self._draw, purpose=f"judge {text}")
        judgments: list[Judgment] = []
        wave = num_votes if self._all_votes else least_to_settle([], num_votes)
        while wave:
            turns = await speaker.say(n=wave, first=len(judgments))
            judgments += [Judgment(turn, parse_vote(turn.text, finished=turn.finished)) for turn in turns]
            wave = least_to_settle([j.vote for j in judgments], num_votes)
        self._votes[text] = tuple(judgments)

    def _drawn(self, name: str, share: float) -> bool:
        rng = np.random.default_rng(stream_seed(self._table.config.seed, self._draw.index, name))
        return bool(rng.random() < share)
