"""Texts put together from what the scorers look for: a verdict is 0 or 1, repeatable, and no known trick wins."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_spell.rewards.matching import MAX_TEXT_CHARS, score
from megatron_spell.roles.responder import parse_answer
from megatron_spell.types.numbers import parse_number
from megatron_spell.types.play import LETTERS, TaskName

GENERAL, MATH, CHOICE = TaskName

pieces = st.lists(
    st.sampled_from(
        [
            *(
                "5",
                "1,250",
                "12.5%",
                "0.125",
                "3/4",
                "\u00bd",
                "1e-05",
                "10^3",
                "million",
                "%",
                "$",
                "(",
                ")",
                "-",
                "\u2212",
            ),
            *(
                " ",
                ", ",
                " or ",
                " and ",
                "=",
                ".",
                "\n",
                "in millions",
                "decrease",
                "m",
                "x",
                "10",
                "\u00b2",
                "'",
                "^",
            ),
            *(
                "the answer is ",
                "\\boxed{",
                "}",
                "\\frac{1}{2}",
                "**",
                "A",
                "B",
                "(C)",
                "not ",
                "Paris",
                "July 20, 1969",
            ),
            *("1969-07-20", "J. K. ", "co-", "\u6771", "\u20ac", "<think>", "</think>", "\x00", "\ud800"),
        ]
    )
    | st.text(max_size=3),
    max_size=12,
).map("".join)


def verdict(task, prediction, gold):
    return score(task, prediction, gold, tolerance=0.0015)


@given(pieces, pieces, st.sampled_from(list(TaskName)))
@example("5" * 5000, "5" * 5000, MATH)
def test_any_two_texts_have_one_verdict(prediction, gold, task):
    read = parse_answer("the answer is " + prediction, task)
    for each in (prediction, read):
        first = verdict(task, each, gold)
        assert first in (0.0, 1.0)
        assert verdict(task, each, gold) == first


@given(pieces)
def test_what_is_read_is_an_answer_of_its_task(said):
    for task in TaskName:
        read = parse_answer("The answer is " + said, task)
        if read is not None:
            assert read.strip()
            assert task != CHOICE or read in LETTERS
            assert len(read) <= MAX_TEXT_CHARS


@given(pieces)
def test_a_number_that_is_read_keeps_its_value_when_it_is_read_again(said):
    read = parse_answer("The answer is " + said, MATH)
    found = parse_number(read) if read else None
    if found is not None:
        again = parse_answer(f"The answer is {read}.", MATH)
        assert again is not None
        assert parse_number(again) == found


written = st.tuples(
    st.sampled_from(["", "about ", "~", "= "]),
    st.sampled_from(["", "-", "\u2212", "+", "minus ", "(", "-("]),
    st.sampled_from(["", "$", "USD ", "\u20ac"]),
    st.sampled_from(
        ["5", "1,250", "0.125", "3/4", "1 1/2", "\u00bd", "1e-05", "2 \u00d7 10^3", "10^3", ".5", "0", "12'000"]
    ),
    st.sampled_from(["", ")", "%", ")%", " million", "m", "bn", " bps", " (in millions)", " pp", "K", "%)"]),
    st.sampled_from(["", ".", " dollars", " per share", " increase", " decrease", " or so"]),
).map("".join)


@given(written)
def test_a_number_is_itself_and_not_its_negative(text):
    found = parse_number(text)
    if found is None:
        assert verdict(MATH, text, text) == 0.0
        return
    assert verdict(MATH, text, text) == 1.0
    if found.value:
        flipped = found.text[1:] if found.text.startswith("-") else f"-{found.text}"
        assert verdict(MATH, flipped, text) == 0.0
        assert verdict(MATH, text, flipped) == 0.0


numbers = st.decimals(-(10**9), 10**9, allow_nan=False, places=4).filter(lambda number: number != 0)


@given(numbers, st.sampled_from(["", "%", " million", " thousand", " billion"]))
def test_a_scale_error_is_wrong_whatever_scale_the_gold_states(number, scale):
    gold = f"{number:f}{scale}"
    shared = parse_number(gold)
    for factor in (10, 100, 1000, 10**6, 10**9):
        for other in (number * factor, number / factor):
            value = float(other)
            means_gold = abs(value - shared.value) <= 0.002 * abs(shared.value)
            assert verdict(MATH, f"{other:f}", gold) == 0.0 or means_gold


@given(
    numbers, numbers, st.sampled_from([" or ", ", ", " and ", "; ", " / ", " - ", " to ", "|", " or maybe ", " vs. "])
)
def test_listing_two_numbers_is_no_answer(one, other, between):
    said = f"The answer is {one:f}{between}{other:f}."
    if abs(one - other) > abs(one) / 50:
        assert verdict(MATH, parse_answer(said, MATH), f"{one:f}") == 0.0
        assert verdict(MATH, parse_answer(said, MATH), f"{other:f}") == 0.0


@given(st.permutations(LETTERS), st.sampled_from([" or ", ", ", " and ", "/", " or maybe ", ") ", "; "]), st.booleans())
def test_listing_letters_is_no_answer(letters, between, in_parentheses):
    first, second = (f"({letter})" if in_parentheses else letter for letter in letters[:2])
    assert parse_answer(f"The answer is {first}{between}{second}", CHOICE) is None


@pytest.mark.parametrize("task", TaskName)
def test_texts_over_the_bound_match_nothing(task):
    for text in ("5" + " " * MAX_TEXT_CHARS, "A" * (MAX_TEXT_CHARS + 1)):
        assert verdict(task, text, text) == 0.0
