"""From votes and the rule's verdicts to the rewards of a round."""

from dataclasses import replace

from megatron_spell.config.schema import RewardSection
from megatron_spell.rewards.frontier import question_reward
from megatron_spell.rewards.voting import judgment_rewards, majority
from megatron_spell.types.play import Answer, Judgment, Outcome, Round


def assign_rewards(round: Round, settings: RewardSection) -> Round:
    """An answered round with majority and reward of every answer, the judgments' rewards, outcome and question reward.

    Answers that parsed to the same text share one tuple of judgments, also when only one of them was judged. An
    answer's reward is max(rule, majority), the rule's alone where no vote decides. Raises ValueError without answers.
    """
    if not round.answers_G:
        raise ValueError(f"round {round.draw.index}: has no answers, so there is nothing to reward")
    shared = _shared_judgments(round.answers_G)
    answers_G = tuple(_rewarded(answer, shared) for answer in round.answers_G)
    scored = replace(round, answers_G=answers_G)
    return replace(
        scored, outcome=_outcome(answers_G), question_reward=question_reward(scored.solve_rate, settings.frontier_sigma)
    )


def _shared_judgments(answers_G: tuple[Answer, ...]) -> dict[str, tuple[Judgment, ...]]:
    """The judgments of each distinct parsed answer, rewarded; the first found where several are given."""
    shared: dict[str, tuple[Judgment, ...]] = {}
    for answer in answers_G:
        if answer.parsed is not None and answer.judgments_V and answer.parsed not in shared:
            shared[answer.parsed] = _agreed(answer.judgments_V)
    return shared


def _agreed(judgments_V: tuple[Judgment, ...]) -> tuple[Judgment, ...]:
    rewards_V = judgment_rewards([j.vote for j in judgments_V])
    return tuple(replace(j, reward=reward) for j, reward in zip(judgments_V, rewards_V))


def _rewarded(answer: Answer, shared: dict[str, tuple[Judgment, ...]]) -> Answer:
    judgments_V = shared.get(answer.parsed, ()) if answer.parsed is not None else ()
    decided = majority([j.vote for j in judgments_V])
    voted = None if decided is None else float(decided)
    reward = answer.rule if voted is None else max(answer.rule, voted)
    return replace(answer, judgments_V=judgments_V, majority=voted, reward=reward)


def _outcome(answers_G: tuple[Answer, ...]) -> Outcome:
    rewards = {answer.reward for answer in answers_G}
    if rewards == {0.0}:
        return Outcome.UNSOLVED
    return Outcome.TRIVIAL if rewards == {1.0} else Outcome.USABLE
