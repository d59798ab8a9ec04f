import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.rewards.matching import MAX_TEXT_CHARS, guess_rate, score
from megatron_spell.types.play import LETTERS, TaskName

TOLERANCE = 0.0015


def general(prediction, gold):
    return score(TaskName.GENERAL_QA, prediction, gold, tolerance=TOLERANCE)


def number(prediction, gold, tolerance=TOLERANCE):
    return score(TaskName.MATH_QA, prediction, gold, tolerance=tolerance)


COVERED = [
    ("Paris", "paris"),
    ("in Paris", "Paris"),
    ("the Beatles", "Beatles"),
    ("It was the Beatles", "Beatles"),
    ("physicist Marie Curie", "Marie Curie"),
    ("Marie Curie from Poland", "Marie Curie"),
    ("Paris, France", "Paris France"),
    ("Paris France", "Paris, France"),
    ("salt and pepper", "salt and pepper"),
    ("U.S. Steel", "US Steel"),
    ("co-founder", "co founder"),
    ("don't know", "dont know"),
    ("5.2%", "5.2 percent"),
    ("5.2 %", "5.2%"),
    ("$5.20", "5.2"),
    ("1,250", "1250"),
    ("1", "1"),
    ("in 2019", "2019"),
    ("COVID-19", "covid 19"),
    ("\u221252", "-52"),
    ("\uff30\uff41ris", "Paris"),
    ("no", "no"),
    ("none", "None"),
    ("a", "A"),
    ("+", "+"),
    ("\u6771\u4eac", "\u6771\u4eac"),
]

NOT_COVERED = [
    ("2019", "1"),
    ("10", "1"),
    ("not known", "no"),
    ("nothing", "no"),
    ("yes no", "no"),
    ("no, yes", "no"),
    ("not approved", "approved"),
    ("isn't approved", "approved"),
    ("unapproved", "approved"),
    ("never in Paris", "Paris"),
    ("Paris, London", "Paris"),
    ("Paris or London", "Paris"),
    ("Paris and London", "Paris"),
    ("Paris/London", "Paris"),
    ("Paris & London", "Paris"),
    ("Paris\nLondon", "Paris"),
    ("Paris London", "Paris"),
    ("London Paris", "Paris"),
    ("Paris. London", "Paris"),
    ("Marie Curie, Einstein", "Marie Curie"),
    ("Marie Curie or Einstein", "Marie Curie"),
    ("Marie Curie Albert Einstein", "Marie Curie"),
    ("University of New York, Boston", "University of New York"),
    ("not fully approved", "fully approved"),
    ("neither Marie Curie", "Marie Curie"),
    ("July 20 1969", "July 20"),
    ("1 2 3 4 5", "3"),
    ("2019-2020", "2020"),
    ("52", "5.2"),
    ("5.2", "52"),
    ("5.2", "5.2%"),
    ("5.2%", "5.2"),
    ("-5", "5"),
    ("3M", "3"),
    ("b", "A"),
    ("", "x"),
    ("the", "x"),
    ("\u4e0d\u6771\u4eac", "\u6771\u4eac"),
    ("France Paris", "Paris France"),
    ("Paris " + "of " * 100, "Paris"),
]


@pytest.mark.parametrize(("prediction", "gold"), COVERED)
def test_an_answer_that_covers_the_gold_is_right(prediction, gold):
    assert general(prediction, gold) == 1.0


@pytest.mark.parametrize(("prediction", "gold"), NOT_COVERED)
def test_an_answer_that_says_something_else_or_more_is_wrong(prediction, gold):
    assert general(prediction, gold) == 0.0


SAME = [
    ("5.2", "5.2"),
    ("approximately $5.2", "5.2"),
    ("-$5.2", "-5.2"),
    ("(5.2)", "-5.2"),
    ("1,250", "1250"),
    ("100.15", "100"),
    ("99.85", "100"),
    ("-99.9", "-100"),
    ("3/4", "0.75"),
    ("0.00001", "1e-05"),
    ("12.5%", "12.5%"),
    ("12.5", "12.5%"),
    ("0.125", "12.5%"),
    ("12.5%", "0.125"),
    ("5.2", "5.2 million"),
    ("5200000", "5.2 million"),
    ("5,200 thousand", "5.2 million"),
    ("0", "0"),
]

DIFFERENT = [
    ("-5.2", "5.2"),
    ("5.2", "-5.2"),
    ("100.16", "100"),
    ("99.84", "100"),
    ("1250", "12.5"),
    ("12.5%", "12.5"),
    ("0.125", "12.5"),
    ("5.2", "5200000"),
    ("5.2 million", "5.2"),
    ("5.2 billion", "5.2 million"),
    ("5.2%", "5.2 million"),
    ("0.0001", "0.0009"),
    ("0.0001", "0"),
    ("1", "1e-05"),
    ("5 or 6", "5"),
    ("5, 6", "5"),
    ("1,2,3", "1"),
    ("()", "5"),
    ("five", "5"),
    ("5", "five"),
    ("5" + " " * 300, "5"),
]


@pytest.mark.parametrize(("prediction", "gold"), SAME)
def test_the_same_number_is_right(prediction, gold):
    assert number(prediction, gold) == 1.0


@pytest.mark.parametrize(("prediction", "gold"), DIFFERENT)
def test_another_number_is_wrong(prediction, gold):
    assert number(prediction, gold) == 0.0


def test_the_tolerance_is_the_one_given():
    assert number("101", "100", tolerance=0.01) == 1.0
    assert number("101", "100", tolerance=0.009) == 0.0
    assert number("100", "100", tolerance=0.0) == 1.0


@pytest.mark.parametrize("prediction", [*LETTERS, "a", "AB", "", "(A)"])
@pytest.mark.parametrize("gold", LETTERS)
def test_letters_are_right_when_equal(prediction, gold):
    assert score(TaskName.MULTIPLE_CHOICE, prediction, gold, tolerance=0) == float(prediction == gold)


def test_a_gold_that_is_no_letter_is_never_right():
    assert score(TaskName.MULTIPLE_CHOICE, "E", "E", tolerance=0) == 0.0


@pytest.mark.parametrize("task", TaskName)
def test_no_answer_is_wrong(task):
    assert score(task, None, "5", tolerance=TOLERANCE) == 0.0


def test_only_letters_can_be_guessed():
    assert [guess_rate(task) for task in TaskName] == [0.0, 0.0, 0.25]


@pytest.mark.parametrize("task", TaskName)
def test_model_text_is_never_run(task, tmp_path):
    target = tmp_path / "written"
    code = f"open({str(target)!r}, 'w').write('x') or 5"
    assert score(task, code, "5", tolerance=TOLERANCE) == 0.0
    assert score(task, "5", code, tolerance=TOLERANCE) == 0.0
    assert not target.exists()


words = st.text(alphabet=st.sampled_from("ab1 .,-%$/&\n'\u2019\u6771(\x00"), max_size=60)


@settings(deadline=None)
@given(words | st.text(max_size=60), words | st.text(max_size=60), st.sampled_from(list(TaskName)))
def test_any_two_texts_score_zero_or_one(prediction, gold, task):
    assert score(task, prediction, gold, tolerance=TOLERANCE) in (0.0, 1.0)


@settings(deadline=None)
@given(st.text(max_size=60).filter(str.strip))
def test_a_text_covers_itself(text):
    assert general(text, text) == 1.0


names = st.lists(
    st.sampled_from(["Paris", "London", "Rome", "Oslo", "12", "5.2%"]), min_size=2, max_size=5, unique=True
)


@settings(deadline=None)
@given(names, st.sampled_from([" ", ", ", " or ", "; ", " / ", " and ", "\n", ". ", " (", " - ", "|", " vs "]))
def test_listing_candidates_never_wins(candidates, between):
    listed = between.join(candidates)
    assert all(general(listed, gold) == 0.0 for gold in candidates)


@settings(deadline=None)
@given(st.floats(min_value=1e-6, max_value=1e12), st.floats(-0.01, 0.01))
def test_numbers_within_the_tolerance_are_right_and_others_wrong(gold, deviation):
    found = gold * (1 + deviation)
    if abs(abs(deviation) - TOLERANCE) > 1e-9:
        assert number(repr(found), repr(gold)) == float(abs(deviation) < TOLERANCE)
    assert number(repr(-found), repr(gold)) == 0.0


@pytest.mark.parametrize("unit", ["a", "a ", "1", "1,", ",", "-", ".", "'", "5%", " ", "(", "1 per ", "\u6771"])
def test_long_texts_are_scored_at_once(unit):
    huge, longest = unit * 10_000_000, (unit * MAX_TEXT_CHARS)[:MAX_TEXT_CHARS]
    start = time.process_time()
    for text in (huge, longest):
        for task in TaskName:
            score(task, text, longest, tolerance=TOLERANCE)
            score(task, longest, text, tolerance=TOLERANCE)
    assert time.process_time() - start < 10
    assert general(huge, "a") == 0.0
