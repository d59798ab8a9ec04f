"""From a step's rounds to training rows: which outputs of which role are trained on, with which advantage."""

from collections.abc import Iterator, Sequence

import numpy as np

from megatron_spell.algo.advantages import normalise
from megatron_spell.config.schema import AlgoSection
from megatron_spell.rewards.voting import trainable
from megatron_spell.types.batches import TrainRow
from megatron_spell.types.play import Judgment, Outcome, Role, Round, TaskName, Turn

# Outcomes whose question earned a reward by its own doing; the questioner learns from them.
FAILED = (
    Outcome.UNSOLVED,
    Outcome.TRIVIAL,
    Outcome.UNGROUNDED,
    Outcome.BAD_FORMAT,
    Outcome.UNFINISHED,
    Outcome.UNUSABLE_ANSWER,
)

Scored = list[tuple[Turn, float]]


def assemble(rounds: Sequence[Round], algo: AlgoSection, rng: np.random.Generator) -> list[TrainRow]:
    """The rows of one optimizer step, groups adjacent; groups without any signal are left out.

    An empty output stays in its group (its reward is part of the baseline) but brings no token: it is no signal.

    `rng` chooses among failed questions and vote groups when there are more than the step takes.
    """
    rounds = [r for r in rounds if r.outcome is not Outcome.STALE]
    groups: list[tuple[Role, TaskName, Scored]] = []
    if Role.RESPONDER in algo.train_roles:
        groups += [(Role.RESPONDER, r.draw.task, [(a.turn, a.reward) for a in r.answers_G]) for r in _usable(rounds)]
    if Role.QUESTIONER in algo.train_roles:
        groups += [(Role.QUESTIONER, task, scored) for task, scored in _questions(rounds, algo, rng).items()]
    if Role.VERIFIER in algo.train_roles:
        groups += [(Role.VERIFIER, task, scored) for task, scored in _vote_groups(rounds, algo, rng)]
    rows: list[TrainRow] = []
    for role, task, scored in groups:
        rows += _rows(role, task, scored, group=rows[-1].group + 1 if rows else 0, epsilon=algo.advantage_epsilon)
    return rows


def _usable(rounds: Sequence[Round]) -> list[Round]:
    return [r for r in rounds if r.outcome == Outcome.USABLE]


def _questions(rounds: Sequence[Round], algo: AlgoSection, rng: np.random.Generator) -> dict[TaskName, Scored]:
    """The usable questions of each task with as many failed ones (times the ratio).

    What a task lacks in failures is carried to the next, so that the total is kept.
    """
    chosen: dict[TaskName, Scored] = {}
    carried = 0.0
    for task in TaskName:
        good = [r for r in _usable(rounds) if r.draw.task == task]
        failed = [r for r in rounds if r.draw.task == task and r.outcome in FAILED]
        wanted = len(good) * algo.failed_question_ratio + carried
        take = min(int(wanted), len(failed))
        carried = wanted - take
        picked = sorted(rng.choice(len(failed), size=take, replace=False)) if take else []
        scored = [(r.ask, r.question_reward) for r in [*good, *(failed[i] for i in picked)] if r.ask is not None]
        if scored:
            chosen[task] = scored
    return chosen


def _vote_groups(
    rounds: Sequence[Round], algo: AlgoSection, rng: np.random.Generator
) -> Iterator[tuple[TaskName, Scored]]:
    eligible = [(r.draw.task, votes) for r in rounds for votes in _trainable_votes(r, algo.verifier_needs_rule)]
    take = min(algo.verifier_groups_per_step, len(eligible))
    for i in sorted(rng.choice(len(eligible), size=take, replace=False)) if take else []:
        task, judgments_V = eligible[i]
        yield task, [(j.turn, j.reward) for j in judgments_V]


def _trainable_votes(played: Round, needs_rule: bool) -> list[tuple[Judgment, ...]]:
    """The distinct vote groups of a round that the verifier may learn from.

    Where asking ended with the majority settled no group is, also when that took all votes: those are the close calls,
    and what agreed more was cut before its first vote against the majority could come.
    """
    distinct = {a.parsed: a for a in played.answers_G if a.judgments_V and not a.stop_when_settled}
    return [
        a.judgments_V
        for a in distinct.values()
        if trainable([j.vote for j in a.judgments_V], a.rule, needs_rule=needs_rule)
    ]


def _rows(role: Role, task: TaskName, scored: Scored, *, group: int, epsilon: float) -> list[TrainRow]:
    rewards = np.array([reward for _, reward in scored], dtype=np.float64)
    advantages = normalise(rewards, epsilon)
    if not any(advantage for (turn, _), advantage in zip(scored, advantages) if turn.completion.token_ids_T.size):
        return []
    return [
        TrainRow(
            role=role,
            task=task,
            group=group,
            prompt_ids_T=turn.prompt_ids_T,
            response_ids_A=turn.completion.token_ids_T,
            engine_log_probs_A=turn.completion.log_probs_T,
            reward=float(reward),
            advantage=float(advantage),
            version=turn.completion.version,
            experts=turn.completion.experts,
        )
        for (turn, reward), advantage in zip(scored, advantages)
    ]
