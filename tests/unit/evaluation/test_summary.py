import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_spell.evaluation.figures import pass_at, weighted
from megatron_spell.evaluation.record import BENCHMARKS
from megatron_spell.evaluation.summary import summarise
from tests.unit.evaluation.made_results import result, results

# Of 4 samples each: scores 1, 0.5 and 0 where there are three questions.
ALL_SIX = {
    "docmath": ["1111", "0000"],
    "frames": ["1111", "1100", "0000"],
    "hotpotqa": ["1000"],
    "2wikimqa": ["1100"],
    "musique": ["1110"],
    "longbench_v2": ["1100", "1100"],
}


def six():
    return [line for name, rights in ALL_SIX.items() for line in results(name, rights)]


def test_both_averages():
    asked = summarise(six()).documents
    assert asked is not None
    scores = {name: figures.score.mean for name, figures in asked.benchmarks.items()}
    wanted = {"docmath": 0.5, "frames": 0.5, "hotpotqa": 0.25, "2wikimqa": 0.5, "musique": 0.75, "longbench_v2": 0.5}
    assert scores == wanted and asked.missing == ()
    assert {name: by_k[1].mean for name, by_k in asked.columns.items()} == pytest.approx(
        {"DocMath": 0.5, "Frames": 0.5, "LB-MQA": 0.5, "LB-V2": 0.5}
    )
    assert asked.six_tasks[1].mean == pytest.approx(sum(wanted.values()) / 6)


def test_the_averages_are_not_the_same():
    lines = [line for line in six() if line.benchmark not in ("hotpotqa", "musique", "2wikimqa")]
    lines += [line for name in ("hotpotqa", "musique", "2wikimqa") for line in results(name, ["1111"])]
    asked = summarise(lines).documents
    assert asked is not None
    assert asked.four_columns[1].mean == pytest.approx((0.5 + 0.5 + 1 + 0.5) / 4)
    assert asked.six_tasks[1].mean == pytest.approx((0.5 + 0.5 + 3 + 0.5) / 6)
    # The planted fault, one average in place of the other, shows.
    assert abs(asked.four_columns[1].mean - asked.six_tasks[1].mean) > 0.1


def test_no_average_over_benchmarks_that_are_not_there():
    asked = summarise([line for line in six() if line.benchmark != "musique"]).documents
    assert asked is not None
    assert asked.missing == ("musique",) and not asked.four_columns and not asked.six_tasks
    assert set(asked.columns) == {"DocMath", "Frames", "LB-V2"}


def test_pass_at_k_of_questions_and_columns():
    asked = summarise(six()).documents
    assert asked is not None
    assert list(asked.benchmarks["frames"].pass_at) == [1, 2, 4]
    assert asked.benchmarks["frames"].pass_at[2].mean == pytest.approx((1 + (1 - 1 / 6) + 0) / 3)
    assert asked.benchmarks["hotpotqa"].pass_at[4].mean == 1.0
    assert asked.columns["LB-MQA"][2].mean == pytest.approx((1 / 2 + 5 / 6 + 1) / 3)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(rights, data):
    k = data.draw(st.integers(1, len(rights)))
    draws = list(itertools.combinations(rights, k))
    assert pass_at(sum(rights), len(rights), k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_drawing_with_replacement_would_be_found():
    # The released script's best@8 of 8 samples: lower than 1 for a question with one right sample.
    with_replacement = 1 - (7 / 8) ** 8
    assert pass_at(1, 8, 8) == 1.0 and abs(with_replacement - 1.0) > 0.3


def test_k_goes_up_to_the_fewest_samples():
    lines = [*results("docmath", ["1111"]), *results("docmath", ["0"] * 2, prompt_tokens=7)[1:]]
    figures = summarise(lines).documents.benchmarks["docmath"]
    assert (figures.num_samples, list(figures.pass_at), figures.score.mean) == (1, [1], 0.5)


def test_shares_and_lengths():
    lines = [
        result("docmath", "a", 0, 1.0, truncated_tokens=5, prompt_tokens=300),
        result("docmath", "a", 1, 0.0, finish_reason="length", prediction=None, prompt_tokens=300, num_tokens=150),
        result("docmath", "b", 0, 0.0, prediction=None, prompt_tokens=513),
        result("docmath", "b", 1, 0.0, judge_score=1.0, prompt_tokens=513),
    ]
    figures = summarise(lines).documents.benchmarks["docmath"]
    assert (figures.truncated, figures.unfinished, figures.unread) == (0.25, 0.25, 0.25)
    assert (figures.score.mean, figures.rule.mean) == (0.5, 0.25)
    assert (figures.prompt_tokens, figures.num_tokens) == (406.5, 75.0)
    assert {length: e.num_questions for length, e in figures.by_length.items()} == {512: 1, 1024: 1}


def test_a_question_counts_in_each_of_its_kinds():
    lines = [
        *results("frames", ["1"], kind="Tabular | Temporal"),
        result("frames", "other", 0, 0.0, kind="Temporal"),
        result("frames", "none", 0, 0.0),
    ]
    kinds = summarise(lines).documents.benchmarks["frames"].by_kind
    assert {kind: (e.mean, e.num_questions) for kind, e in kinds.items()} == {"Tabular": (1.0, 1), "Temporal": (0.5, 2)}


def test_rule_and_judge():
    lines = [
        result("frames", "a", 0, 1.0),
        result("frames", "b", 0, 0.0, prediction=None),
        result("frames", "c", 0, 0.0),
        result("frames", "d", 0, 0.0, judge_score=0.0),
        result("frames", "e", 0, 0.0, judge_score=1.0),
        result("frames", "f", 0, 1.0, judge_score=1.0),
        result("frames", "g", 0, 1.0, judge_score=0.0),
        result("longbench_v2", "a", 0, 1.0),
    ]
    agreement = summarise(lines).documents.agreement
    assert set(agreement) == {"frames"}
    assert all(getattr(agreement["frames"], name) == 1 for name in agreement["frames"].__dataclass_fields__)


def test_the_baseline_without_documents_stands_beside():
    lines = [*results("musique", ["11", "10"]), *results("musique", ["10", "10"], documents=False)]
    lines.append(result("musique", "only told", 0, 1.0))
    summary = summarise(lines)
    assert summary.withheld.benchmarks["musique"].score.mean == 0.5
    assert summary.documents.benchmarks["musique"].score.mean == pytest.approx(2.5 / 3)
    assert (summary.gain["musique"].mean, summary.gain["musique"].num_questions) == (0.25, 2)
    assert summarise(results("musique", ["1"], documents=False)).documents is None
    with pytest.raises(ValueError, match="no results"):
        summarise([])
    with pytest.raises(ValueError, match="musique 'q0': a sample is there twice"):
        summarise([*results("musique", ["11"]), *results("musique", ["1"])])


def test_the_interval_of_an_average_is_as_wide_as_theory_says():
    rng = np.random.default_rng(0)
    groups = [(rng.random(300) < 0.5).astype(float).tolist() for _ in range(3)]
    estimate = weighted(groups, [1 / 3] * 3)
    wanted = 1.96 * math.sqrt(sum(np.var(group) / 300 for group in groups)) / 3
    assert (estimate.high - estimate.low) / 2 == pytest.approx(wanted, rel=0.1)
    # Planted fault: were the three sets drawn alike, as with one seed for all, the interval would be too wide.
    draws = np.random.default_rng(0).integers(300, size=(2000, 300))
    alike = np.mean([np.asarray(groups[0])[draws].mean(axis=1)] * 3, axis=0)
    low, high = np.quantile(alike, [0.025, 0.975])
    assert (high - low) / 2 > 1.5 * wanted
    with pytest.raises(ValueError, match="weights"):
        weighted([[1.0], []], [0.5, 0.5])


def test_order_of_lines_changes_nothing():
    lines = six()
    assert summarise(lines) == summarise(sorted(lines, key=lambda each: (each.sample, each.record_id)))
    assert list(summarise(lines[::-1]).documents.benchmarks) == list(BENCHMARKS)
