"""Accuracy on questions with known answers, through the same prompts, engine and scorer as play."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_spell.data.questions import KnownQuestion
from megatron_spell.rewards.matching import score
from megatron_spell.roles.responder import parse_answer, responder_prompt
from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.selfplay.table import Table
from megatron_spell.types.documents import Document
from megatron_spell.types.play import Completion
from megatron_spell.types.seeds import stream_seed

BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Mean over questions of the share of right samples, with a 95 % bootstrap interval over questions."""

    mean: float
    low: float
    high: float
    num_questions: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    overall: Accuracy
    by_task: dict[str, Accuracy]
    pass_at_all: float  # share of questions that at least one sample got right
    num_samples: int

    def metrics(self) -> dict[str, float]:
        flat = {f"evaluation/{task}/accuracy": a.mean for task, a in self.by_task.items()}
        return flat | {
            "evaluation/accuracy": self.overall.mean,
            "evaluation/accuracy/low": self.overall.low,
            "evaluation/accuracy/high": self.overall.high,
            f"evaluation/pass_at_{self.num_samples}": self.pass_at_all,
        }


async def evaluate(questions: Sequence[KnownQuestion], table: Table) -> Evaluation:
    """Ask every question `evaluation.samples` times, with seeds that depend on the question only."""
    shares = await asyncio.gather(*(_right_share(i, q, table) for i, q in enumerate(questions)))
    by_task: dict[str, list[float]] = defaultdict(list)
    for question, share in zip(questions, shares):
        by_task[question.task.value].append(share)
    return Evaluation(
        overall=accuracy(shares),
        by_task={task: accuracy(values) for task, values in sorted(by_task.items())},
        pass_at_all=float(np.mean([share > 0 for share in shares])),
        num_samples=table.config.evaluation.samples,
    )


def accuracy(shares: Sequence[float]) -> Accuracy:
    """Raises ValueError when there is no question."""
    values = np.asarray(shares, dtype=np.float64)
    if not values.size:
        raise ValueError("accuracy of no questions")
    rng = np.random.default_rng(0)
    means = rng.choice(values, size=(BOOTSTRAP_DRAWS, values.size)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Accuracy(float(values.mean()), float(low), float(high), int(values.size))


async def _right_share(number: int, known: KnownQuestion, table: Table) -> float:
    prompt = responder_prompt(table.templates, known.task, _documents(known, table), known.question)
    spec = SamplingSpec(
        temperature=table.config.sampling.temperature,
        top_p=table.config.sampling.top_p,
        max_tokens=table.config.sampling.max_tokens.responder,
        seed=stream_seed(table.config.seed, "evaluation", number),
        n=table.config.evaluation.samples,
        stop_ids=table.tokenizer.stop_ids,
    )
    completions = await table.engine.generate(table.chat.encode(prompt), spec, key=known.set_id)
    tolerance = table.config.rewards.numeric_tolerance
    return float(np.mean([_score(completion, known, table, tolerance) for completion in completions]))


def _score(completion: Completion, known: KnownQuestion, table: Table, tolerance: float) -> float:
    text = table.tokenizer.decode(completion.token_ids_T)
    parsed = parse_answer(text, known.task, finished=completion.finish_reason == "stop")
    return score(known.task, parsed, known.question.gold, tolerance=tolerance)


def _documents(known: KnownQuestion, table: Table) -> list[Document]:
    every = table.document_set(known.set_id).documents
    return list(every) if known.documents is None else [every[i] for i in known.documents]
