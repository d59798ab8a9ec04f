"""What each scorer makes of a whole response: (what was said, the gold, the answer read from it, the rule's verdict).

1 is right, 0 is wrong. An answer of None is none at all: it earns nothing, and the verifier is not asked. An answer
that is read but wrong by the rule can still be passed by the verifier.
"""

import pytest

from megatron_spell.rewards.matching import score
from megatron_spell.roles.responder import parse_answer
from megatron_spell.types.play import TaskName

GENERAL, MATH, CHOICE = TaskName

NUMBERS = [
    # said, gold, read, verdict
    ("Therefore, the answer is 5.2.", "5.2", "5.2", 1),
    ("Therefore, the answer is 5.3.", "5.2", "5.3", 0),
    ("Therefore, the answer is -5.2.", "5.2", "-5.2", 0),
    ("Therefore, the answer is \u22125.2.", "-5.2", "-5.2", 1),
    ("The answer is minus 5.2 million", "-5.2 million", "-5.2 million", 1),
    ("The answer is -(5.2)", "-5.2", "-5.2", 1),
    ("The answer is $(5.2) million", "-5.2 million", "-5.2 million", 1),
    ("The answer is (5.2)%", "-5.2%", "-5.2%", 1),
    ("The answer is (5.2)%", "5.2%", "-5.2%", 0),
    ("The answer is (5.2).", "5.2", "5.2", 1),
    ("The answer is 5.2% (a rise of 5.2%)", "5.2%", "5.2%", 1),
    ("The answer is a 12% decrease", "12%", None, 0),
    ("The answer is 12% decrease", "12%", "12% decrease", 0),
    ("The answer is 12% decrease", "-12%", "12% decrease", 0),
    ("The answer is -12%, a decrease", "-12%", "-12%", 1),
    # tolerance 0.15 %
    ("The answer is 100.15", "100", "100.15", 1),
    ("The answer is 100.16", "100", "100.16", 0),
    ("The answer is 2.143", "2.142857142857143", "2.143", 1),
    ("The answer is 0.0001", "0", "0.0001", 0),
    # thousands, fractions, powers of ten
    ("The answer is $1,234,567.89.", "1234567.89", "1234567.89", 1),
    ("The answer is 1,25", "1.25", None, 0),
    ("The answer is 1 234", "1234", None, 0),
    ("The answer is 1'234", "1234", "1234", 1),
    ("The answer is 3/4", "0.75", "3/4", 1),
    ("The answer is 1 3/4", "1.75", "1 3/4", 1),
    ("The answer is 1\u00bd", "1.5", "1 1/2", 1),
    ("The answer is \\frac{3}{4}", "0.75", "3/4", 1),
    ("The answer is $1\\frac{3}{4}$", "1.75", "1 3/4", 1),
    ("The answer is 1.2 \u00d7 10\u2076", "1200000", "1.2e6", 1),
    ("The answer is $1.2 \\times 10^{-3}$", "0.0012", "1.2e-3", 1),
    ("The answer is 10\u00b3", "1000", "1e3", 1),
    ("The answer is 10\u00b3", "103", "1e3", 0),
    # scales: equivalent as written only where the gold states one
    ("The answer is 12.5", "12.5%", "12.5", 1),
    ("The answer is 0.125", "12.5%", "0.125", 1),
    ("The answer is 12.5%", "12.5", "12.5%", 0),
    ("The answer is 12.5%", "0.125", "12.5%", 1),
    ("The answer is 12.5 percentage points", "12.5%", "12.5%", 1),
    ("The answer is 1250 basis points", "12.5%", "1250 bps", 1),
    ("The answer is 5.2", "5.2 million", "5.2", 1),
    ("The answer is 5,200,000", "5.2 million", "5200000", 1),
    ("The answer is 1,200 million", "1.2 billion", "1200 million", 1),
    ("The answer is USD 5.2m", "5.2 million", "5.2 million", 1),
    ("The answer is $5.2bn", "5.2 million", "5.2 billion", 0),
    ("The answer is 5.2m", "5.2", "5.2 m", 0),
    ("The answer is 5.2x", "5.2", "5.2", 1),
    ("The answer is 5.2 (in millions)", "5.2 million", "5.2 million", 1),
    ("The answer is 5.2 million", "5.2", "5.2 million", 0),
    ("The answer is 5.2 thousands", "5.2", "5.2 thousand", 0),
    ("The answer is 3 crore", "3", "3 crore", 0),
    # several numbers are no answer, unless they are the same one
    ("The answer is 5 or 6", "5", None, 0),
    ("The answer is 5, maybe 6", "5", None, 0),
    ("The answer is 5 or more", "5", None, 0),
    ("The answer is 5 and a half", "5", None, 0),
    ("The answer is 5 in 2019 and 6 in 2020", "5", None, 0),
    ("The answer is 5-6", "5", None, 0),
    ("The answer is 5 \u00b1 1", "5", None, 0),
    ("The answer is 5 * 3", "5", None, 0),
    ("The answer is >= 5", "5", None, 0),
    ("The answer is 0.125 or 12.5%", "0.125", "0.125", 1),
    ("The answer is 5.2 million (5,200,000)", "5.2 million", "5.2 million", 1),
    ("The answer is 5 (= 10 / 2)", "5", "5", 1),
    ("The answer is 10 / 2 = 5", "5", "5", 1),
    ("The answer is 5.2 million as of December 31, 2019.", "5.2 million", "5.2 million", 1),
    ("The answer is 5.2% (rounded to 2 decimal places)", "5.2%", "5.2%", 1),
    # where the statement stands
    ("**Final answer:** 5.2", "5.2", "5.2", 1),
    ("Hence \\boxed{5.2\\%}.", "5.2%", "5.2%", 1),
    ("The answer is 3. No, the answer is 5.2.", "5.2", "5.2", 1),
    ("<think>The answer is 3</think>The answer is 5.2", "5.2", "5.2", 1),
    ("<think>The answer is 5.2", "5.2", None, 0),
    ("5.2", "5.2", None, 0),
]

TEXTS = [
    ("The correct answer is Paris.", "Paris", "Paris", 1),
    ('The correct answer is "paris"', "Paris", "paris", 1),
    ("The correct answer is the city of Paris", "Paris", "the city of Paris", 0),
    ("The correct answer is physicist Marie Curie", "Marie Curie", "physicist Marie Curie", 1),
    ("The correct answer is not Paris", "Paris", "not Paris", 0),
    ("The correct answer is Paris or London", "Paris", "Paris or London", 0),
    ("The correct answer is Paris, London, Rome", "Rome", "Paris, London, Rome", 0),
    ("The correct answer is Paris, France", "Paris, France", "Paris, France", 1),
    # dates
    ("The correct answer is 20 July 1969", "July 20, 1969", "20 July 1969", 1),
    ("The correct answer is July 20th, 1969", "July 20, 1969", "July 20th, 1969", 1),
    ("The correct answer is 1969-07-20", "July 20, 1969", "1969-07-20", 1),
    ("The correct answer is July 21, 1969", "July 20, 1969", "July 21, 1969", 0),
    ("The correct answer is July 20, 1969", "July 20", "July 20, 1969", 0),
    ("The correct answer is July 1969", "July 20, 1969", "July 1969", 0),
    # names, initials, hyphens, the letter A
    ("The correct answer is J. K. Rowling", "J.K. Rowling", "J. K. Rowling", 1),
    ("The correct answer is JK Rowling", "J. K. Rowling", "JK Rowling", 1),
    ("The correct answer is B. Smith", "A. B. Smith", "B. Smith", 0),
    ("The correct answer is John Smith", "John A. Smith", "John Smith", 0),
    ("The correct answer is Vitamin C", "Vitamin A", "Vitamin C", 0),
    ("The correct answer is vitamins", "Vitamin A", "vitamins", 0),
    ("The correct answer is the Vitamin", "Vitamin A", "the Vitamin", 0),
    ("The correct answer is vitamin A", "Vitamin A", "vitamin A", 1),
    ("The correct answer is cofounder", "co-founder", "cofounder", 1),
    ("The correct answer is e-mail", "email", "e-mail", 1),
    ("The correct answer is non-approved", "approved", "non-approved", 0),
    ("The correct answer is Paris-London", "Paris", "Paris-London", 0),
    # numbers inside texts
    ("The correct answer is 5.2 percent", "5.2%", "5.2 percent", 1),
    ("The correct answer is 12%", "12 percentage points", "12%", 0),
    ("The correct answer is 1,250 people", "1250", "1,250 people", 0),
    ("The correct answer is -5", "5", "-5", 0),
    ("The correct answer is $5 million", "\u20ac5 million", "$5 million", 0),
    ("The correct answer is $5 million", "5 million", "$5 million", 1),
    ("The correct answer is 2019-2020", "2020", "2019-2020", 0),
]

LETTERS = [
    ("The correct answer is (B) A decline", "B", "B", 1),
    ("The correct answer is **C**.", "C", "C", 1),
    ("The correct answer is 'D'", "D", "D", 1),
    ("The correct answer is B", "C", "B", 0),
    ("The correct answer is b", "B", None, 0),
    ("The correct answer is A or maybe B", "A", None, 0),
    ("The correct answer is (A) a rise, (B) a fall", "A", None, 0),
    ("The correct answer is A) B)", "B", None, 0),
    ("The correct answer is B (not A)", "B", "B", 1),
    ("The correct answer is not A", "A", None, 0),
    ("The correct answer is E", "E", None, 0),
]


def cases(task, table):
    return [pytest.param(task, *case, id=f"{task}: {case[0][:60]} / {case[1]}") for case in table]


@pytest.mark.parametrize(
    ("task", "said", "gold", "answer", "verdict"),
    [*cases(MATH, NUMBERS), *cases(GENERAL, TEXTS), *cases(CHOICE, LETTERS)],
)
def test_a_response_is_read_and_scored(task, said, gold, answer, verdict):
    assert parse_answer(said, task) == answer
    assert score(task, answer, gold, tolerance=0.0015) == verdict


PLAIN_NUMBERS = [
    # prediction as it stands, gold, verdict: here parentheses are those of accounts
    ("(5.2)", "-5.2", 1),
    ("(5.2)", "5.2", 0),
    ("(5.2%)", "-5.2%", 1),
    ("($1,250)", "-1250", 1),
    ("5.2 million shares", "5.2 million", 1),
    ("5 years", "5", 1),
    ("5 or so", "5", 0),
    ("five", "5", 0),
]


@pytest.mark.parametrize(("prediction", "gold", "verdict"), PLAIN_NUMBERS)
def test_a_plain_number_is_scored_as_it_stands(prediction, gold, verdict):
    assert score(MATH, prediction, gold, tolerance=0.0015) == verdict
