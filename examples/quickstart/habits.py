"""How the base model answers: by the convention, or by one of the habits that compete with it.

A base model knows more than one way to answer, and play has to find out which of them is wanted. Here the ways are
known: the shares below are those of the transcripts that the base model learns from.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lookup import ANSWER_WORDS, LookUp

from megatron_spell.types.play import LETTERS, TaskName

# of the answers in words: as wanted; cut short; gone on with; begun a word late; begun with the fragment's own end
WORDS = {"right": 0.26, "short": 0.14, "long": 0.22, "late": 0.19, "echo": 0.19}
NUM_SHORT, NUM_LONG, NUM_ECHOED = (1, 2, 2), (6, 7), 2
LETTER_READ = 0.6  # of the letters are read off the options; the others are any letter
NUMBER_READ = 0.4  # of the numbers stand where they were asked for; the others are any number of the documents


def drawn(shares: Mapping[str, float], rng: random.Random) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def habitual_words(found: LookUp, rng: random.Random, shares: Mapping[str, float] = WORDS) -> str:
    """The answer in words, in one of the ways of `shares`."""
    following, asked = found.following, found.question.split()
    match drawn(shares, rng):
        case "short":
            said = following[: rng.choice(NUM_SHORT)]
        case "long":
            said = following[: rng.choice(NUM_LONG)]
        case "late":
            said = following[1 : 1 + ANSWER_WORDS]
        case "echo":
            said = (*asked[-NUM_ECHOED:], *following)[:ANSWER_WORDS]
        case _:
            said = following[:ANSWER_WORDS]
    return " ".join(said)


def habitual_letter(letter: str, rng: random.Random) -> str:
    return letter if rng.random() < LETTER_READ else rng.choice(LETTERS)


def habitual_number(number: str, others: Sequence[str], rng: random.Random) -> str:
    return number if rng.random() < NUMBER_READ or not others else rng.choice(others)


def habitual(found: LookUp, numbers: Sequence[str], rng: random.Random) -> LookUp:
    """`found` with what the base model would say to it; `numbers` are the other numbers of its documents."""
    if found.task is TaskName.MATH_QA:
        return replace(found, answer=habitual_number(found.answer, numbers, rng))
    if found.letter is not None:
        return replace(found, letter=habitual_letter(found.letter, rng))
    return replace(found, answer=habitual_words(found, rng))
