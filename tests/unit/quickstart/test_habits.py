"""The habits that compete in the transcripts: each is what it says, and the rule takes only the right one."""

import random
from collections import Counter

import pytest
from contexts import Contexts
from habits import LETTER_READ, NUM_ECHOED, WORDS, habitual, habitual_letter, habitual_number, habitual_words
from lookup import look_up
from transcripts import answer_text

from megatron_spell.rewards.matching import score
from megatron_spell.roles.responder import parse_answer
from megatron_spell.types.play import LETTERS, TaskName


@pytest.fixture(scope="module")
def found(scribe, texts):
    """Some 200 questions in words."""
    contexts, rng = Contexts.of(scribe.tokenizer, texts[0]), random.Random(0)
    asked = [look_up(TaskName.GENERAL_QA, contexts.draw(rng, 256, 0.3, 0.0), scribe.spans, rng) for _ in range(200)]
    # a word that ends a line is joined to the next one; split by blanks, as below, it would be two
    return [one for one in asked if one is not None and not any("\n" in word for word in one.following)]


def test_the_shares_add_up_to_one():
    assert sum(WORDS.values()) == pytest.approx(1.0)


def test_each_habit_says_what_it_says(found):
    rng = random.Random(0)
    for one in found:
        said = {name: habitual_words(one, rng, {name: 1.0}).split() for name in WORDS}
        follows = " ".join(one.following).split()
        assert said["right"] == one.answer.split() == follows[: len(said["right"])]
        assert said["short"] == follows[: len(said["short"])] and len(said["short"]) < len(said["right"])
        assert said["long"] == follows[: len(said["long"])]
        assert said["late"] == follows[1 : 1 + len(said["late"])]
        ending = one.question.split()[-NUM_ECHOED:]
        assert said["echo"][: len(ending)] == ending


def test_the_rule_takes_hardly_anything_but_the_right_way(found):
    rng = random.Random(0)
    taken = {name: [_is_right(one, habitual_words(one, rng, {name: 1.0})) for one in found] for name in WORDS}
    shares = {name: sum(rights) / len(rights) for name, rights in taken.items()}
    assert shares["right"] == 1.0
    assert all(share < 0.3 for name, share in shares.items() if name != "right"), shares


def _is_right(found, words: str) -> float:
    parsed = parse_answer(f"The answer is {words}", TaskName.GENERAL_QA)
    return score(TaskName.GENERAL_QA, parsed, found.answer, tolerance=0.0015)


def test_letters_and_numbers_are_sometimes_any(found):
    rng = random.Random(0)
    letters = Counter(habitual_letter("B", rng) for _ in range(4000))
    assert set(letters) == set(LETTERS)
    assert letters["B"] / 4000 == pytest.approx(LETTER_READ + (1 - LETTER_READ) / 4, abs=0.03)
    assert {habitual_number("7", ["8"], rng) for _ in range(50)} == {"7", "8"}
    assert habitual_number("7", [], rng) == "7"


def test_a_habit_changes_the_answer_and_not_the_question(found):
    rng = random.Random(0)
    for one in found[:50]:
        said = habitual(one, [], rng)
        assert (said.question, said.task, said.document) == (one.question, one.task, one.document)
        assert answer_text(said).startswith("The correct answer is ")
