"""The rule's verdict on an answer: words, numbers or letters. Pure; nothing that a model wrote is ever evaluated.

The rule may be too strict, never too lenient: the verifier can still pass an answer that it refuses, but nothing can
take back what it grants.

Time is limited by bounding the input: texts over MAX_TEXT_CHARS match nothing, and every pattern is linear, so that no
call can take longer than a few milliseconds (benchmarks/scorers.py measures the worst). There is no clock beside that,
on purpose. A verdict that depends on how busy the machine is would make a step no function of weights, seed and
curriculum; and Python can stop a call by the clock only in the main thread (signals), or at the price of a process that
costs more than the call.
"""

import re
from collections.abc import Callable, Iterator
from itertools import accumulate

from megatron_spell.rewards.words import SEPARATOR, currencies, has_hyphen, is_unspaced, names_letter_a, words
from megatron_spell.types.numbers import MAX_CHARS, parse_number
from megatron_spell.types.play import LETTERS, TaskName

MAX_TEXT_CHARS = 2000  # longer texts match nothing

# May surround the reference answer: they name no candidate and do not turn its sense.
_FUNCTION_WORDS = re.compile(
    r"of|in|on|at|by|for|from|to|with|as|it|is|was|were|are|be|been|its|his|her|their|this|that"
    r"|about|approximately|around|roughly|mr|mrs|ms|dr"
)
# Turn the sense of what they stand by, or offer something else besides.
_CONTRARY = re.compile(
    r"not?|never|neither|nor|none|without|except|unlike|instead|rather|but|or|and|either|both|versus|vs|non|yes|false"
    r"|wrong|incorrect|maybe|cannot|cant|wont|dont|(?:is|was|are|were|does|did|has|have|had)nt"
)

_BETWEEN = "\n"  # in no word


def score(task: TaskName, prediction: str | None, gold: str, *, tolerance: float) -> float:
    """1.0 when the rule takes `prediction` for `gold`, else 0.0; nothing was predicted (None) is 0.0.

    `tolerance` is the relative deviation allowed of numbers (paper: 0.0015); other tasks do not use it.
    """
    if prediction is None or len(prediction) > MAX_TEXT_CHARS or len(gold) > MAX_TEXT_CHARS:
        return 0.0
    if task == TaskName.MATH_QA:
        return float(same_number(prediction, gold, tolerance))
    if task == TaskName.MULTIPLE_CHOICE:
        return float(gold in LETTERS and prediction.strip() == gold)
    return float(covers(prediction, gold))


def guess_rate(task: TaskName) -> float:
    """How often a blind guess is right: one of four letters, else never."""
    return 1.0 / len(LETTERS) if task == TaskName.MULTIPLE_CHOICE else 0.0


def same_number(prediction: str, gold: str, tolerance: float) -> bool:
    """Whether both are one number each, equal within `tolerance` of the gold's value. Signs count.

    When the gold states a scale ("5.2 million", "12.5%"), a prediction without any may also be the number as written
    (5.2, 12.5). A scale that only the prediction states is part of its value.
    """
    if len(prediction) > MAX_CHARS or len(gold) > MAX_CHARS:
        return False
    found, wanted = parse_number(prediction), parse_number(gold)
    if found is None or wanted is None:
        return False
    if _close(found.value, wanted.value, tolerance):
        return True
    return not found.states_scale and _close(found.written, wanted.written, tolerance)


def _close(found: float, wanted: float, tolerance: float) -> bool:
    # The second term is only rounding of the division and scaling above.
    return abs(found - wanted) <= (tolerance + 1e-12) * abs(wanted)


def covers(prediction: str, gold: str) -> bool:
    """Cover exact match on whole words: `gold` stands in `prediction`, and nothing that could be another answer.

    Case, punctuation, articles and the way a date is written do not count, nor whether a hyphen parts or joins; numbers
    keep sign, decimals and percent. Around the gold may stand function words and at most half as many other words as
    the gold has, which is too little for a second candidate; no comma, "or", "and", negation or further number. Two
    different currencies never match.
    """
    if (said := currencies(prediction)) and (wanted := currencies(gold)) and not said & wanted:
        return False
    ways = (False, True) if has_hyphen(prediction) or has_hyphen(gold) else (False,)
    return any(_covers(prediction, gold, join_hyphens) for join_hyphens in ways)


def _covers(prediction: str, gold: str, join_hyphens: bool) -> bool:
    how = {"letter_a": names_letter_a(gold), "join_hyphens": join_hyphens}
    wanted = [word for word in words(gold, **how) if word != SEPARATOR]
    found = words(prediction, **how)
    if not wanted:
        return prediction.strip().casefold() == gold.strip().casefold()
    if len(found) > 3 * len(wanted) + 20:
        return False
    num_others, num_rivals = _counts(found)
    return any(
        num_others(start, stop) <= len(wanted) // 2 and num_rivals(start, stop) == 0
        for start, stop in _places(found, wanted)
    )


def _places(found: list[str], wanted: list[str]) -> Iterator[tuple[int, int]]:
    """Where `wanted` stands in `found` from and to, separators inside it overlooked."""
    places = [i for i, word in enumerate(found) if word != SEPARATOR]
    # Strings are searched in linear time, lists are not.
    spoken = _BETWEEN + "".join(found[i] + _BETWEEN for i in places)
    first_at = dict(zip(accumulate((len(found[i]) + 1 for i in places), initial=0), range(len(places))))
    sought = _BETWEEN + "".join(word + _BETWEEN for word in wanted)
    start = spoken.find(sought)
    while start >= 0:
        k = first_at[start]
        yield places[k], places[k + len(wanted) - 1] + 1
        start = spoken.find(sought, start + 1)


def _counts(found: list[str]) -> tuple[Callable[[int, int], int], Callable[[int, int], int]]:
    """Two functions of (start, stop): how many words outside of it are more than function words, and offer another."""
    more = [_FUNCTION_WORDS.fullmatch(word) is None for word in found]
    others = [0, *accumulate(more)]
    rivals = [0, *accumulate(each and _offers_another(word) for each, word in zip(more, found))]
    return (
        lambda start, stop: others[-1] - others[stop] + others[start],
        lambda start, stop: rivals[-1] - rivals[stop] + rivals[start],
    )


def _offers_another(word: str) -> bool:
    is_number = word[-1:].isdigit() or word.endswith("%")
    # Without spaces there are no word boundaries to keep to, so nothing may be added at all.
    return word == SEPARATOR or is_number or _CONTRARY.fullmatch(word) is not None or is_unspaced(word)
