import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.types.numbers import MAX_CHARS, leading_number, parse_number

READ = {
    "5.2": 5.2,
    "-5.2": -5.2,
    "+5": 5,
    "\u22125": -5,
    "minus 3": -3,
    "negative 3": -3,
    ".5": 0.5,
    "5.": 5,
    "1,250": 1250,
    "1\u202f250": 1250,
    "12,345,678.9": 12345678.9,
    "(1,250)": -1250,
    "(-5)": -5,
    "($5.2) million": -5.2e6,
    "($5.2 million)": -5.2e6,
    "-$5.2": -5.2,
    "$-5.2": -5.2,
    "US$1,234.5bn": 1234.5e9,
    "USD 7": 7,
    "7 EUR": 7,
    "\u20ac7 million": 7e6,
    "12.5%": 0.125,
    "-12.5 %": -0.125,
    "12.5 percent": 0.125,
    "12.5 per cent": 0.125,
    "12.5 percentage points": 0.125,
    "3 Thousand": 3000,
    "2.5 hundred thousand": 250000,
    "5M": 5e6,
    "5 MM": 5e6,
    "5K": 5000,
    "5 m": 5,
    "1e-05": 1e-5,
    "1.2E6": 1.2e6,
    "1.2 \u00d7 10^6": 1.2e6,
    "1.2 x 10^{-3}": 1.2e-3,
    "3/4": 0.75,
    "-3 / 4": -0.75,
    "approximately $5.2": 5.2,
    "~5": 5,
    "= 5": 5,
    "about 1,000,000 shares of common stock": 1e6,
    "\uff11\uff12": 12,
    "0": 0,
}

REFUSED = [
    *("", "  ", "()", "-", "nan", "inf", "five", "not 5", "x5", "5 or 6", "5, 6", "5-6", "2019-2020", "1.2.3"),
    *(
        "1,25",
        "1.250,5",
        "12,34,567",
        "(5",
        "1/0",
        "1e999",
        "1e9999",
        "5 6",
        "12/31/2020",
        "\u0665",
        "1" * 400,
        "5 " + "x" * 400,
    ),
    *("__import__('os').getcwd()", "9**9**9**9", "[1]", "True"),
]


@pytest.mark.parametrize(("text", "value"), READ.items())
def test_a_number_is_read_as_people_write_it(text, value):
    found = parse_number(text)
    assert found is not None
    assert found.value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_one_number_is_refused(text):
    assert parse_number(text) is None


def test_plain_writing_keeps_sign_and_scale_and_drops_decoration():
    texts = ["-$5.2 Million", "(1,250)", "12.5 percent", "about 3/4 of it", "1.20 \u00d7 10^6"]
    plain = ["-5.2 million", "-1250", "12.5%", "3/4", "1.20e6"]
    assert [parse_number(t).text for t in texts] == plain


@pytest.mark.parametrize("text", READ)
def test_plain_writing_reads_back_as_the_same_number(text):
    found = parse_number(text)
    again = parse_number(found.text)
    assert (again.value, again.written, again.scale) == (found.value, found.written, found.scale)


def test_a_stated_scale_is_kept_apart_from_the_number_as_written():
    found = parse_number("12.5%")
    assert (found.written, found.scale, found.states_scale) == (12.5, 0.01, True)
    assert not parse_number("12.5").states_scale


def test_a_leading_number_leaves_the_rest_and_takes_parentheses_for_decoration():
    number, rest = leading_number("(5.2 million) in 2019")
    assert (number.value, rest) == (5.2e6, " in 2019")


def test_a_leading_number_cut_by_the_length_bound_is_refused():
    assert leading_number("1" * (MAX_CHARS + 1)) is None
    assert leading_number("1" * 300 + " x") is None
    assert leading_number("7 " + "x" * 1000)[0].value == 7


@settings(deadline=None)
@given(st.text(alphabet="0123456789.,-+()/%$eE xMKB\u00d710^{}million", max_size=MAX_CHARS + 20))
def test_anything_is_either_a_finite_number_or_none(text):
    found = parse_number(text)
    assert found is None or math.isfinite(found.value)


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12))
def test_every_integer_reads_back_with_and_without_separators(value):
    assert parse_number(str(value)).value == value
    assert parse_number(f"{value:,}").value == value


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_reads_back_from_its_own_writing(value):
    assert parse_number(repr(value)).value == value


@pytest.mark.parametrize("unit", ["1", ",", "1,", "(", " ", "per", "\\times 10", "hundred ", "approximately ", "a.b "])
def test_ten_megabytes_take_no_time(unit):
    text = "5 " + unit * (10_000_000 // len(unit))
    start = time.perf_counter()
    parse_number(text)
    leading_number(text)
    assert time.perf_counter() - start < 5
