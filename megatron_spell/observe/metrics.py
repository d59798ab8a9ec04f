"""Figures of a step: of its rounds, of the rows trained on and of the bins they were packed into.

Every value is a finite float. A mean over nothing is left out rather than written as zero or NaN; counters of what can
be absent (outcomes, roles) are always there, so that they have a value at every step.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from megatron_spell.types.batches import PackedBatch, TrainRow
from megatron_spell.types.play import Answer, Judgment, Outcome, Role, Round, TaskName, Turn

ANSWERED = (Outcome.USABLE, Outcome.UNSOLVED, Outcome.TRIVIAL)
UNREWARDED = (Outcome.PROMPT_TOO_LONG, Outcome.SURPLUS, Outcome.STALE)


def round_metrics(rounds: Sequence[Round]) -> dict[str, float]:
    """Of all rounds that ended in a step, whatever their outcome.

    Shares are of 1. `verifier/agreement/mean` is the share of an answer's valid votes that are its majority's, and
    `verifier/rule_agreement/mean` the share of answers whose majority is the rule's verdict; votes that several answers
    share count once. Shares of the verifier are of groups with all their votes, where there are any: asking ends early
    where the votes agree. `<role>/surprisal/mean` is the mean -log-probability, in nats at temperature 1, that the
    engine gave to the tokens which the role wrote: it estimates the entropy where sampling is at temperature 1 with
    top-p 1; colder sampling makes it smaller than that.
    """
    metrics = {"rounds/count": float(len(rounds))}
    outcomes = Counter(played.outcome for played in rounds)
    metrics |= {f"rounds/outcome/{outcome}": float(outcomes[outcome]) for outcome in Outcome}
    metrics |= _mean("rounds/usable_share", (played.outcome is Outcome.USABLE for played in rounds))
    metrics |= _questioner(rounds) | _responder(rounds) | _verifier(rounds)
    for role in Role:
        metrics |= _outputs(role, [turn for played in rounds for turn in turns_of(played, role)])
    return metrics


def turns_of(played: Round, role: Role) -> list[Turn]:
    """What `role` said in a round: the question; the blind and the true answers; the votes (shared ones once)."""
    if role is Role.QUESTIONER:
        return [played.ask] if played.ask else []
    if role is Role.RESPONDER:
        return [*played.blind_turns, *(answer.turn for answer in played.answers_G)]
    return [judgment.turn for _, votes in vote_groups(played) for judgment in votes]


def vote_groups(played: Round) -> list[tuple[Answer, tuple[Judgment, ...]]]:
    """The distinct vote groups of a round, each with the first answer that it was cast on."""
    first: dict[int, Answer] = {}
    for answer in played.answers_G:
        if answer.judgments_V:
            first.setdefault(id(answer.judgments_V), answer)
    return [(answer, answer.judgments_V) for answer in first.values()]


def _questioner(rounds: Sequence[Round]) -> dict[str, float]:
    rewarded = [played for played in rounds if played.ask is not None and played.outcome not in UNREWARDED]
    metrics = _mean("questioner/reward/mean", (played.question_reward for played in rewarded))
    checked = [played.blind_solve_rate for played in rounds if played.blind_solve_rate is not None]
    metrics |= _mean("questioner/blind_solve_rate/mean", checked)
    for task in TaskName:
        of_task = [played for played in rounds if played.draw.task is task]
        metrics |= _mean(f"questioner/usable_share/{task}", (played.outcome is Outcome.USABLE for played in of_task))
    return metrics


def _responder(rounds: Sequence[Round]) -> dict[str, float]:
    answered = [played for played in rounds if played.outcome in ANSWERED]
    answers = [answer for played in answered for answer in played.answers_G]
    metrics = _mean("responder/reward/mean", (answer.reward for answer in answers))
    metrics |= _mean("responder/rule/mean", (answer.rule for answer in answers))
    metrics |= _mean("responder/unparsable/share", (answer.parsed is None for answer in answers))
    rewarded = [answer for answer in answers if answer.reward > 0]
    metrics |= _mean("responder/reward_against_rule/share", (answer.rule == 0 for answer in rewarded))
    metrics |= _mean("responder/solve_rate/mean", (played.solve_rate for played in answered))
    for task in TaskName:
        of_task = (played.solve_rate for played in answered if played.draw.task is task)
        metrics |= _mean(f"responder/solve_rate/{task}", of_task)
    return metrics


def _verifier(rounds: Sequence[Round]) -> dict[str, float]:
    every = [group for played in rounds for group in vote_groups(played)]
    metrics = {"verifier/votes": float(sum(len(judgments) for _, judgments in every))}
    groups = [group for group in every if not group[0].stop_when_settled] or every
    votes = [judgment.vote for _, judgments in groups for judgment in judgments]
    metrics |= _mean("verifier/unparsable/share", (vote is None for vote in votes))
    metrics |= _mean("verifier/yes/share", (vote for vote in votes if vote is not None))
    for name, verdict in (("refused", 0), ("accepted", 1)):
        of_verdict = [judgments for answer, judgments in groups if answer.rule == verdict]
        readable = (judgment.vote for judgments in of_verdict for judgment in judgments if judgment.vote is not None)
        metrics |= _mean(f"verifier/yes_on_{name}/share", readable)
    metrics |= _mean("verifier/reward/mean", (judgment.reward for _, judgments in groups for judgment in judgments))
    metrics |= _mean("verifier/agreement/mean", filter(None, (_agreement(judgments) for _, judgments in groups)))
    judged = [answer for answer, _ in groups if answer.majority is not None]
    metrics |= _mean("verifier/rule_agreement/mean", (answer.majority == answer.rule for answer in judged))
    return metrics


def _agreement(judgments: Sequence[Judgment]) -> float | None:
    valid = [judgment.vote for judgment in judgments if judgment.vote is not None]
    return max(valid.count(True), valid.count(False)) / len(valid) if valid else None


def _outputs(role: Role, turns: Sequence[Turn]) -> dict[str, float]:
    lengths = [turn.completion.token_ids_T.size for turn in turns]
    metrics = {f"{role}/outputs": float(len(turns))}
    metrics |= _mean(f"{role}/output_tokens/mean", lengths)
    if lengths:
        metrics[f"{role}/output_tokens/max"] = float(max(lengths))
    if sum(lengths):
        total = -sum(float(turn.completion.log_probs_T.sum(dtype=np.float64)) for turn in turns)
        metrics[f"{role}/surprisal/mean"] = total / sum(lengths)
    metrics |= _mean(f"{role}/prompt_tokens/mean", (turn.prompt_ids_T.size for turn in turns))
    metrics |= _mean(f"{role}/unfinished/share", (turn.completion.finish_reason == "length" for turn in turns))
    return metrics


def row_metrics(rows: Sequence[TrainRow], version: int) -> dict[str, float]:
    """Of the rows of one optimizer step. Token counts are of rows run by themselves, prompts counted every time.

    `version` is the policy's before the step: a row's staleness is how far its first token lies behind.
    """
    metrics = _mean("rows/staleness/mean", (version - row.version for row in rows))
    metrics |= {"rows/staleness/max": float(max((version - row.version for row in rows), default=0))}
    metrics |= {"tokens/prompt": float(sum(row.prompt_ids_T.size for row in rows))}
    metrics["tokens/trained"] = float(sum(row.response_ids_A.size for row in rows))
    for role in Role:
        of_role = [row for row in rows if row.role is role]
        metrics[f"{role}/rows"] = float(len(of_role))
        metrics[f"{role}/groups"] = float(len({row.group for row in of_role}))
        metrics[f"tokens/trained/{role}"] = float(sum(row.response_ids_A.size for row in of_role))
        metrics |= _mean(f"{role}/advantage/abs_mean", (abs(row.advantage) for row in of_role))
    return metrics


def packing_metrics(batch: PackedBatch) -> dict[str, float]:
    """Of the bins: how full, and `packing/shared_share`, the share of row tokens that sharing prompts saved.

    It can fall below zero where fillers and padding outweigh what is shared; `packing/useful_share` is what they leave.
    """
    bins = [packed for bins_B in batch.bins_D_B for packed in bins_B]
    metrics = {"packing/bins": float(len(bins)), "packing/bin_tokens": float(batch.num_bin_tokens)}
    metrics |= _mean("packing/tokens_per_bin", (packed.num_tokens for packed in bins))
    metrics["packing/useful_share"] = batch.useful_token_fraction
    if batch.num_row_tokens:
        metrics["packing/shared_share"] = 1 - batch.num_bin_tokens / batch.num_row_tokens
    return metrics


def _mean(name: str, values: Iterable[float]) -> dict[str, float]:
    numbers = [float(value) for value in values]
    return {name: float(np.mean(numbers))} if numbers else {}
