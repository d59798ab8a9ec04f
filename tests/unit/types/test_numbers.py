import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.types.numbers import MAX_CHARS, leading_number, open_word, parse_number

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
    "$5.2m": 5.2e6,
    "USD 5.2m": 5.2e6,
    "5.2 mn": 5.2e6,
    "$5 mm": 5e6,
    "$5bn": 5e9,
    "5 m dollars": 5e6,
    "$5T": 5e12,
    "5 tn": 5e12,
    "5k": 5000,
    "5.2 thousands": 5200,
    "5 dozen": 60,
    "5 lakh": 5e5,
    "5 crore": 5e7,
    "25 bps": 0.0025,
    "25 basis points": 0.0025,
    "12 pp": 0.12,
    "(5.2)%": -0.052,
    "(5.2%)": -0.052,
    "$(5.2) million": -5.2e6,
    "-(5.2)": -5.2,
    "5.2x": 5.2,
    "5.2 times": 5.2,
    "5.2 (in millions)": 5.2e6,
    "5.2 in millions of dollars": 5.2e6,
    "5.2 dollars (in thousands)": 5200,
    "5.2 (million)": 5.2e6,
    "5.2 million (in millions)": 5.2e6,
    "12.5 (percent)": 0.125,
    "1 3/4": 1.75,
    "1\u00bd": 1.5,
    "-2 \u00bc": -2.25,
    "\u00be": 0.75,
    "10^3": 1000,
    "10\u00b3": 1000,
    "1.5\u00d710\u207b\u00b3": 0.0015,
    "1.5\u00b710^3": 1500,
    "5 m^2 of land": 5,
    "5 m/s": 5,
    "5 km\u00b2": 5,
    "5'000": 5000,
    "1\u2019234\u2019567": 1234567,
    "-12% decrease": -0.12,
    "12% of the decrease": 0.12,
    "Rs. 5 crore": 5e7,
    "CA$5": 5,
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
    *("5 m", "5.2m", "5 b", "5 t", "5 T", "5 mm", "5 m tall"),  # a unit or a scale
    *(
        "12% decrease",
        "12.5% year-over-year decline",
        "$5 million net loss",
        "5 (decrease)",
        "5 lower",
    ),  # or its negative
    *("5 or more", "5 and a half", "5 plus tax", "5 or six", "5 %%", "5 % million", "5% (in millions)"),
    *("-(-5)", "--5", "5-", "5+", "+-5", "\u00b15", "5 \u00b1 1", "1 3/2", "1 234", "1234'567", "1'23", "5 3", "2^3"),
    *("5 or", "> 5", "at least 5", "10\u00b3\u2070\u2070\u2070", "5\u00b2", "5:30", "0x10", "5 * 3", "5 x 3"),
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
    texts = ["-$5.2 Million", "(1,250)", "12.5 percent", "about 3/4 of it", "1.20 \u00d7 10^6", "$5.2M", "1\u00bd%"]
    plain = ["-5.2 million", "-1250", "12.5%", "3/4", "1.20e6", "5.2 million", "1 1/2%"]
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


def test_parentheses_of_accounts_turn_the_sign_of_a_leading_number_too():
    for text in ("$(5.2)", "USD (5.2) in 2019", "(5.2)%", "(5.2) million of it", "-(5.2)"):
        assert leading_number(text)[0].written == -5.2, text
    for text in ("(5.2)", "(5.2%)", "($5.2 million)", "(5.2) years"):
        assert leading_number(text)[0].written == 5.2, text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("12% decrease", "decrease"),
        ("12% (a decline)", "decline"),
        ("5 m", "m"),
        ("5 T", "t"),
        ("12% increase", None),
        ("12% of the decrease", None),
        ("-12% decrease", None),
        ("5 million m", None),
        ("5 m/s", None),
        ("5", None),
    ],
)
def test_a_word_that_leaves_sign_or_scale_open_is_named(text, word):
    assert open_word(*leading_number(text)) == word


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
    start = time.process_time()
    parse_number(text)
    leading_number(text)
    assert time.process_time() - start < 5
