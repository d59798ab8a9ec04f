"""Figures of an evaluation, from its result lines. Pure.

A question's score is the mean over its samples, a benchmark's the mean over its questions (pass@1). pass@k is the
unbiased estimate. Intervals are of 95 %, from bootstrap over questions (figures.py).
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from megatron_spell.evaluation.figures import Estimate, accuracy, bucket, ladder, paired, pass_at, weighted
from megatron_spell.evaluation.record import BENCHMARKS, TASKS
from megatron_spell.evaluation.results import SampleResult
from megatron_spell.types.play import TaskName

# The paper's columns; the multi-hop one is the mean of its three sets.
COLUMNS = {
    "DocMath": ("docmath",),
    "Frames": ("frames",),
    "LB-MQA": ("hotpotqa", "2wikimqa", "musique"),
    "LB-V2": ("longbench_v2",),
}

_LETTERS_ALONE = TaskName.MULTIPLE_CHOICE  # no judge is asked
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one benchmark. `num_samples` is the fewest that any question has, and bounds k of `pass_at`.

    Shares are of samples: `truncated` lost the middle of their prompt, `unfinished` ran into the output limit, `unread`
    came to an end but state no answer. `by_length` goes by the upper bound of the prompt's length before truncation, in
    tokens; `by_kind` by the classes that the benchmark names, and a question of several classes counts in each.
    """

    num_questions: int
    num_samples: int
    pass_at: dict[int, Estimate]
    rule: Estimate
    truncated: float
    unfinished: float
    unread: float
    prompt_tokens: float
    num_tokens: float
    by_length: dict[int, Estimate]
    by_kind: dict[str, Estimate]

    @property
    def score(self) -> Estimate:
        return self.pass_at[1]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Samples by the verdicts of rule and judge.

    `no_verdict` are answers that the rule refuses and the judge was not asked about, or gave no verdict on; without a
    judge all refused answers are.
    """

    both_pass: int
    rule_alone: int
    judge_alone: int
    both_refuse: int
    rule_passes: int  # judge not asked: it could change nothing
    no_answer: int  # nothing to judge
    no_verdict: int


@dataclass(frozen=True, slots=True)
class Asked:
    """All that was asked in one way, with documents or without. Averages and columns are by k of pass@k.

    `columns` holds those of the paper's four whose benchmarks are all there; `four_columns` is their mean and
    `six_tasks` the mean of all benchmarks, each empty when one is `missing`.
    """

    benchmarks: dict[str, Figures]
    columns: dict[str, dict[int, Estimate]]
    four_columns: dict[int, Estimate]
    six_tasks: dict[int, Estimate]
    missing: tuple[str, ...]
    agreement: dict[str, Agreement]


@dataclass(frozen=True, slots=True)
class Summary:
    """`gain` is what the documents give: the change of score on the questions that were asked both ways."""

    documents: Asked | None
    withheld: Asked | None
    gain: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class _Question:
    benchmark: str
    record_id: str
    samples: tuple[SampleResult, ...]

    @property
    def num_right(self) -> int:
        return sum(sample.score > 0 for sample in self.samples)

    def pass_at(self, k: int) -> float:
        return pass_at(self.num_right, len(self.samples), k)


def summarise(lines: Iterable[SampleResult]) -> Summary:
    """Raises ValueError when there is no line, and when a sample stands in two."""
    questions = _questions(lines)
    if not questions:
        raise ValueError("a summary of no results")
    told = [each for each in questions if each.samples[0].documents]
    withheld = [each for each in questions if not each.samples[0].documents]
    return Summary(_asked(told), _asked(withheld), _gains(told, withheld))


def _questions(lines: Iterable[SampleResult]) -> list[_Question]:
    questions = []
    for (benchmark, _, record_id), samples in _grouped(lines, lambda line: line.question).items():
        if len({sample.sample for sample in samples}) != len(samples):
            raise ValueError(f"{benchmark} {record_id!r}: a sample is there twice")
        questions.append(_Question(benchmark, record_id, tuple(sorted(samples, key=lambda each: each.sample))))
    return questions


def _grouped(values: Iterable, key: Callable[..., Key]) -> dict[Key, list]:
    groups: dict[Key, list] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups


def _asked(questions: Sequence[_Question]) -> Asked | None:
    if not questions:
        return None
    groups = _grouped(questions, lambda question: question.benchmark)
    groups = {name: groups[name] for name in BENCHMARKS if name in groups}
    columns = {name: _average(groups, {each: 1 / len(of) for each in of}) for name, of in COLUMNS.items()}
    four = {each: 1 / len(COLUMNS) / len(of) for of in COLUMNS.values() for each in of}
    return Asked(
        benchmarks={name: _figures(group) for name, group in groups.items()},
        columns={name: column for name, column in columns.items() if column},
        four_columns=_average(groups, four),
        six_tasks=_average(groups, dict.fromkeys(BENCHMARKS, 1 / len(BENCHMARKS))),
        missing=tuple(name for name in BENCHMARKS if name not in groups),
        agreement={name: _agreement(group) for name, group in groups.items() if TASKS[name] != _LETTERS_ALONE},
    )


def _average(groups: Mapping[str, Sequence[_Question]], weights: Mapping[str, float]) -> dict[int, Estimate]:
    """By k, up to the fewest samples of any question; empty when a benchmark is missing."""
    if not weights.keys() <= groups.keys():
        return {}
    most = min(_fewest(groups[name]) for name in weights)
    return {
        k: weighted([[question.pass_at(k) for question in groups[name]] for name in weights], list(weights.values()))
        for k in ladder(most)
    }


def _fewest(questions: Iterable[_Question]) -> int:
    return min(len(question.samples) for question in questions)


def _figures(questions: Sequence[_Question]) -> Figures:
    samples = [sample for question in questions for sample in question.samples]
    lengths = _grouped(questions, lambda question: bucket(question.samples[0].prompt_tokens))
    kinds = [(kind, question) for question in questions for kind in question.samples[0].kinds]
    by_kind = {kind: [question for _, question in pairs] for kind, pairs in _grouped(kinds, lambda p: p[0]).items()}
    fewest = _fewest(questions)
    return Figures(
        num_questions=len(questions),
        num_samples=fewest,
        pass_at={k: accuracy([question.pass_at(k) for question in questions]) for k in ladder(fewest)},
        rule=accuracy([float(np.mean([sample.rule_score for sample in q.samples])) for q in questions]),
        truncated=float(np.mean([sample.truncated_tokens > 0 for sample in samples])),
        unfinished=float(np.mean([not sample.finished for sample in samples])),
        unread=float(np.mean([sample.finished and sample.prediction is None for sample in samples])),
        prompt_tokens=float(np.mean([sample.prompt_tokens for sample in samples])),
        num_tokens=float(np.mean([sample.num_tokens for sample in samples])),
        by_length={length: _score(lengths[length]) for length in sorted(lengths)},
        by_kind={kind: _score(by_kind[kind]) for kind in sorted(by_kind)},
    )


def _score(questions: Sequence[_Question]) -> Estimate:
    return accuracy([question.pass_at(1) for question in questions])


def _agreement(questions: Sequence[_Question]) -> Agreement:
    samples = [sample for question in questions for sample in question.samples]
    counts = _grouped(samples, _verdicts)
    return Agreement(**{name: len(counts.get(name, ())) for name in Agreement.__dataclass_fields__})


def _verdicts(sample: SampleResult) -> str:
    if sample.judge_score is not None:
        by_judge = {(1, 1): "both_pass", (1, 0): "rule_alone", (0, 1): "judge_alone", (0, 0): "both_refuse"}
        return by_judge[int(sample.rule_score), int(sample.judge_score)]
    if sample.rule_score:
        return "rule_passes"
    if sample.prediction is None:
        return "no_answer"
    return "no_verdict"


def _gains(told: Sequence[_Question], withheld: Sequence[_Question]) -> dict[str, Estimate]:
    before = {(question.benchmark, question.record_id): question.pass_at(1) for question in withheld}
    both = [question for question in told if (question.benchmark, question.record_id) in before]
    return {
        name: paired([before[name, q.record_id] for q in group], [q.pass_at(1) for q in group])
        for name, group in _grouped(both, lambda question: question.benchmark).items()
    }
