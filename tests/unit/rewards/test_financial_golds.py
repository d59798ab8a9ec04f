"""Golds of real financial questions: accepted in every usual form, refused when anything about the number is another.

The records are DocMath-Eval's kind (shared data, docmath_schema). A gold is tried as the number alone and, where the
record gives a unit (percent, thousand, million), as the number with it.
"""

import gzip
import json
import os
import re
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from megatron_spell.rewards.matching import score
from megatron_spell.roles.responder import parse_answer
from megatron_spell.types.numbers import parse_number
from megatron_spell.types.play import TaskName
from tests.unit.rewards.surface_forms import (
    SCALES,
    digits,
    responses,
    right_as_stated,
    right_numbers,
    right_scales,
    wrong_numbers,
    wrong_writing,
)

DATA = Path(os.environ.get("MEGATRON_SPELL_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
RECORDS = DATA / "docmath_schema" / "records.jsonl.gz"
NUM_RECORDS = 433
LEAST_FORMS = 12
TOLERANCE = 0.0015
score_under_test = score
MAX_NEIGHBOURS = 12

pytestmark = pytest.mark.skipif(not RECORDS.exists(), reason=f"{RECORDS} is not there; set MEGATRON_SPELL_DATA")


@pytest.fixture(scope="module")
def records():
    with gzip.open(RECORDS, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def is_right(prediction, gold):
    return score_under_test(TaskName.MATH_QA, prediction, gold, tolerance=TOLERANCE) == 1.0


def number_of(record) -> Decimal:
    return Decimal(repr(record["ground_truth"]))


def stated(record) -> tuple[str, str] | None:
    """The gold with its unit, and the unit, where the record has one."""
    scale = record.get("scale")
    if not scale:
        return None
    return digits(number_of(record)) + ("%" if scale == "percent" else f" {scale}"), scale


def told(failures: list[str], counts: Counter) -> None:
    assert not failures, f"{len(failures)} of {sum(counts.values())}, first {failures[:10]}"


def test_the_records_are_those_that_were_promised(records):
    assert len(records) == len({record["question_id"] for record in records}) == NUM_RECORDS
    assert all(number_of(record).is_finite() for record in records), "every gold is a number"
    assert sum(number_of(record) == 0 for record in records) == 6
    assert Counter(record.get("scale") or "" for record in records) == {
        "": 165,
        "percent": 124,
        "thousand": 76,
        "million": 68,
    }


def test_every_gold_is_accepted_in_every_plain_form(records):
    failures, counts = [], Counter()
    for record in records:
        number, gold = number_of(record), str(record["ground_truth"])
        forms = right_numbers(number) | right_scales(number)
        failures += [f"{gold} as {form!r} ({name})" for name, form in forms.items() if not is_right(form, gold)]
        counts[record["question_id"]] = len(set(forms.values()))
    told(failures, counts)
    assert len(counts) == NUM_RECORDS
    assert min(counts.values()) >= LEAST_FORMS


def test_every_gold_with_a_unit_is_accepted_with_it_without_it_and_in_another(records):
    failures, counts = [], Counter()
    for record in records:
        if (found := stated(record)) is None:
            continue
        (gold, scale), number = found, number_of(record)
        forms = right_as_stated(number, scale) | right_scales(number * SCALES[scale])
        failures += [f"{gold} as {form!r} ({name})" for name, form in forms.items() if not is_right(form, gold)]
        counts[record["question_id"]] = len(set(forms.values()))
    told(failures, counts)
    assert len(counts) == 124 + 76 + 68
    assert min(counts.values()) >= LEAST_FORMS


def test_every_gold_is_accepted_at_the_end_of_every_kind_of_response(records):
    failures, counts = [], Counter()
    for record in records:
        number, found = number_of(record), stated(record)
        golds = [(str(record["ground_truth"]), "")]
        if found is not None:
            golds += [(found[0], ""), (found[0], "%" if found[1] == "percent" else found[1])]
        for gold, unit in golds:
            for name, said in responses(number, unit).items():
                counts[record["question_id"]] += 1
                if not is_right(parse_answer(said, TaskName.MATH_QA), gold):
                    failures.append(f"{gold} in {said!r} ({name})")
    told(failures, counts)
    assert len(counts) == NUM_RECORDS
    assert min(counts.values()) >= LEAST_FORMS


def test_sign_flips_neighbours_and_scale_errors_are_refused(records):
    failures, counts = [], Counter()
    for record in records:
        number, found = number_of(record), stated(record)
        if number == 0:
            continue
        golds = [(str(record["ground_truth"]), [number])]
        if found is not None:
            golds.append((found[0], [number, number * SCALES[found[1]]]))
        for gold, right in golds:
            for name, other in wrong_numbers(number):
                if other in right:
                    continue  # 0.052 is 5.2%
                for form in wrong_writing(other).values():
                    said = f"Therefore, the answer is {form.strip('()')}."
                    counts[name] += 1
                    if is_right(form, gold) or (
                        form[0] != "(" and is_right(parse_answer(said, TaskName.MATH_QA), gold)
                    ):
                        failures.append(f"{gold} as {form!r} ({name})")
    told(failures, counts)
    assert counts["sign flip"] >= 2 * (NUM_RECORDS - 6)


def test_scales_that_the_gold_does_not_state_are_refused(records):
    failures, counts = [], Counter()
    for record in records:
        number, found = number_of(record), stated(record)
        if number == 0:
            continue
        text = digits(number)
        wrong = {"percent": f"{text}%", "thousand": f"{text} thousand", "million": f"{text} million", "b": f"${text}bn"}
        golds = [(str(record["ground_truth"]), wrong)]
        if found is not None:
            golds.append((found[0], {name: form for name, form in wrong.items() if name != found[1]}))
        for gold, forms in golds:
            counts[gold] += len(forms)
            failures += [f"{gold} as {form!r}" for form in forms.values() if is_right(form, gold)]
    told(failures, counts)


def test_other_numbers_of_the_same_record_are_refused(records):
    failures, counts = [], Counter()
    for record in records:
        number, found = number_of(record), stated(record)
        right = [(str(record["ground_truth"]), [number])]
        if found is not None:
            right.append((found[0], [number, number * SCALES[found[1]]]))
        for gold, values in right:
            for other in neighbours(record):
                if all(abs(other - value) > Decimal("0.0016") * abs(value) for value in values):
                    counts[record["question_id"]] += 1
                    failures += [f"{gold} as {other}"] if is_right(digits(other), gold) else []
    told(failures, counts)
    assert len(counts) == NUM_RECORDS
    assert sum(counts.values()) > 10 * NUM_RECORDS


def neighbours(record) -> list[Decimal]:
    """The numbers of the solution and the question, then those of the paragraphs; each also with the other sign."""
    text = " ".join([record["python_solution"], record["question"], *record["paragraphs"]])
    found = dict.fromkeys(re.findall(r"(?<![\w.,])[0-9][0-9,]*(?:\.[0-9]+)?(?![\w])", text))
    numbers = dict.fromkeys(Decimal(each.replace(",", "")) for each in list(found)[:MAX_NEIGHBOURS])
    return [sign * each for each in numbers for sign in (1, -1)]


def without_signs(task, prediction, gold, tolerance):
    return score(task, re.sub("[-()]", "", prediction or ""), gold.replace("-", ""), tolerance=tolerance)


def at_any_scale(task, prediction, gold, tolerance):
    found = parse_number(prediction or "")
    tries = [] if found is None else [f"{found.value * 10.0**power!r}" for power in range(-6, 7)]
    return max((score(task, each, gold, tolerance=tolerance) for each in tries), default=0.0)


def ten_times_as_tolerant(task, prediction, gold, tolerance):
    return score(task, prediction, gold, tolerance=10 * tolerance)


def by_its_letters(task, prediction, gold, tolerance):
    return float(prediction == gold)


@pytest.mark.parametrize(
    ("faulty", "check"),
    [
        (without_signs, test_sign_flips_neighbours_and_scale_errors_are_refused),
        (at_any_scale, test_sign_flips_neighbours_and_scale_errors_are_refused),
        (at_any_scale, test_scales_that_the_gold_does_not_state_are_refused),
        (ten_times_as_tolerant, test_sign_flips_neighbours_and_scale_errors_are_refused),
        (by_its_letters, test_every_gold_is_accepted_in_every_plain_form),
        (by_its_letters, test_every_gold_is_accepted_at_the_end_of_every_kind_of_response),
    ],
)
def test_the_checks_find_a_scorer_at_fault(records, monkeypatch, faulty, check):
    monkeypatch.setattr(sys.modules[__name__], "score_under_test", faulty)
    with pytest.raises(AssertionError, match=r"of [0-9]+, first"):
        check(records[:20])
