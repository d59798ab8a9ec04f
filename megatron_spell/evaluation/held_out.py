"""Accuracy on questions with known answers, through the same prompts, engine and scorer as play."""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from megatron_spell.data.questions import KnownQuestion
from megatron_spell.evaluation.figures import (
    Estimate,
    UsableLength,
    accuracy,
    bucket,
    ladder,
    pass_at,
    usable_length,
    usable_text,
)
from megatron_spell.rewards.matching import score
from megatron_spell.roles.responder import parse_answer, responder_prompt
from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.selfplay.table import Table
from megatron_spell.types.documents import Document
from megatron_spell.types.play import Completion
from megatron_spell.types.seeds import stream_seed

Key = TypeVar("Key", int, str)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One asking of all questions.

    `by_length` goes by the upper bound, in document tokens, of a question's bucket (figures.py). `num_right` and
    `document_tokens` are of each question, in the file's order, and `asked` tells whether two evaluations asked the
    same: with them two evaluations can be compared question by question.
    """

    overall: Estimate
    by_task: dict[str, Estimate]
    by_length: dict[int, Estimate]
    pass_at: dict[int, float]
    pass_at_all: float  # share of questions that at least one sample got right
    usable_length: UsableLength | None
    usable_accuracy: float
    num_samples: int
    num_right: tuple[int, ...]
    document_tokens: tuple[int, ...]
    asked: str

    def metrics(self) -> dict[str, float]:
        flat = {f"evaluation/{task}/accuracy": a.mean for task, a in self.by_task.items()}
        flat |= {f"evaluation/accuracy/up_to_{tokens}_tokens": a.mean for tokens, a in self.by_length.items()}
        flat |= {f"evaluation/pass_at_{k}": value for k, value in self.pass_at.items()}
        if self.usable_length is not None:
            flat["evaluation/longest_usable_tokens"] = self.usable_length.tokens
        return flat | {
            "evaluation/accuracy": self.overall.mean,
            "evaluation/accuracy/low": self.overall.low,
            "evaluation/accuracy/high": self.overall.high,
        }

    def line(self) -> str:
        """The figures for a reader."""
        overall, most = self.overall, max(self.pass_at)
        by_length = ", ".join(f"{a.mean:.1%} up to {tokens}" for tokens, a in self.by_length.items())
        return (
            f"{overall.mean:.1%} (95 % interval {overall.low:.1%} to {overall.high:.1%}, {overall.num_questions}"
            f" questions, {self.num_samples} samples each), pass@{most} {self.pass_at[most]:.1%}; by document tokens"
            f" {by_length}; longest usable length {usable_text(self.usable_length)}"
        )


async def evaluate(questions: Sequence[KnownQuestion], table: Table) -> Evaluation:
    """Ask every question `evaluation.samples` times, with seeds that depend on the question only."""
    num_right = await asyncio.gather(*(_num_right(i, q, table) for i, q in enumerate(questions)))
    num_tokens = [sum(document.num_tokens for document in _documents(q, table)) for q in questions]
    settings = table.config.evaluation
    shares = [right / settings.samples for right in num_right]
    return Evaluation(
        overall=accuracy(shares),
        by_task=_grouped(shares, (question.task.value for question in questions)),
        by_length=_grouped(shares, map(bucket, num_tokens)),
        pass_at={k: _mean_pass_at(num_right, settings.samples, k) for k in ladder(settings.samples)},
        pass_at_all=_mean_pass_at(num_right, settings.samples, settings.samples),
        usable_length=usable_length(shares, num_tokens, settings.usable_accuracy),
        usable_accuracy=settings.usable_accuracy,
        num_samples=settings.samples,
        num_right=tuple(num_right),
        document_tokens=tuple(num_tokens),
        asked=hashlib.sha256(repr(list(questions)).encode()).hexdigest(),
    )


def _grouped(shares: Sequence[float], keys: Iterable[Key]) -> dict[Key, Estimate]:
    named = list(keys)
    groups = sorted(set(named))
    return {group: accuracy([share for share, key in zip(shares, named) if key == group]) for group in groups}


def _mean_pass_at(num_right: Sequence[int], num_samples: int, k: int) -> float:
    return float(np.mean([pass_at(right, num_samples, k) for right in num_right]))


async def _num_right(number: int, known: KnownQuestion, table: Table) -> int:
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
    return sum(_score(completion, known, table, tolerance) > 0 for completion in completions)


def _score(completion: Completion, known: KnownQuestion, table: Table, tolerance: float) -> float:
    text = table.tokenizer.decode(completion.token_ids_T)
    parsed = parse_answer(text, known.task, finished=completion.finish_reason == "stop")
    return score(known.task, parsed, known.question.gold, tolerance=tolerance)


def _documents(known: KnownQuestion, table: Table) -> list[Document]:
    every = table.document_set(known.set_id).documents
    return list(every) if known.documents is None else [every[i] for i in known.documents]
