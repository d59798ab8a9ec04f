"""The rule's verdict on an answer. Pure, without `eval`; inputs are bounded, so every call is short.

The rule may be too strict, never too lenient: the verifier can still pass an answer that it refuses, but nothing can
take back what it grants.
"""

import re
import unicodedata

from megatron_spell.types.numbers import MAX_CHARS, parse_number
from megatron_spell.types.play import LETTERS, TaskName

MAX_TEXT_CHARS = 2000  # longer texts match nothing

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(
    rf"(?<![^\W_])-?[0-9]+(?:,[0-9]{{3}})*(?:\.[0-9]+)?(?![^\W_])\s?%?|[{_CJK}]|[^\W_{_CJK}]+|(?P<separator>[,;/|&\n\u3001])"
)
_UNSPACED = re.compile(f"[{_CJK}]")
_IN_WORD_MARK = re.compile(r"(?<=[^\W\d_])[.'\u2019]")  # "U.S.", "isn't", "Dr."
_PERCENT = re.compile(r"(?<=[0-9])\s{0,3}per\s{0,3}cent\b")

_ARTICLES = frozenset({"a", "an", "the"})
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
_SEPARATOR = ""


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

    Case, punctuation and articles do not count; numbers keep sign, decimals and percent. Around the gold may stand
    function words and at most half as many other words as the gold has, which is too little for a second candidate;
    no comma, "or", "and", negation or further number.
    """
    wanted = [word for word in words(gold) if word != _SEPARATOR]
    found = words(prediction)
    if not wanted:
        return prediction.strip().casefold() == gold.strip().casefold()
    if len(found) > 3 * len(wanted) + 20:
        return False
    return any(_harmless(rest, len(wanted)) for rest in _around(found, wanted))


def _around(found: list[str], wanted: list[str]) -> list[list[str]]:
    """For each place where `wanted` stands in `found`, separators inside it overlooked: the words around it."""
    places = [i for i, word in enumerate(found) if word != _SEPARATOR]
    spoken = [found[i] for i in places]
    size = len(wanted)
    return [
        found[: places[k]] + found[places[k + size - 1] + 1 :]
        for k in range(len(spoken) - size + 1)
        if spoken[k : k + size] == wanted
    ]


def _harmless(rest: list[str], num_wanted: int) -> bool:
    others = [word for word in rest if not _FUNCTION_WORDS.fullmatch(word)]
    return len(others) <= num_wanted // 2 and not any(map(_offers_another, others))


def _offers_another(word: str) -> bool:
    is_number = word[-1:].isdigit() or word.endswith("%")
    # Without spaces there are no word boundaries to keep to, so nothing may be added at all.
    return word == _SEPARATOR or is_number or _CONTRARY.fullmatch(word) is not None or _UNSPACED.match(word) is not None


def words(text: str) -> list[str]:
    """The words of `text` in lower case; "" for a separator between words. Articles go unless nothing else is left."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").casefold()
    text = _PERCENT.sub("%", _IN_WORD_MARK.sub("", text))
    found = [_SEPARATOR if m["separator"] else _plain_number(m[0]) for m in _TOKEN.finditer(text)]
    without_articles = [word for word in found if word not in _ARTICLES]
    found = without_articles if any(without_articles) else found
    spoken = [i for i, word in enumerate(found) if word != _SEPARATOR]
    return found[spoken[0] : spoken[-1] + 1] if spoken else []


def _plain_number(word: str) -> str:
    """Numbers without thousands separators, blanks and trailing zeros; other words as they are."""
    if not word[0].isdigit() and word[0] != "-":
        return word
    digits, percent = word.rstrip(" %"), "%" if word.endswith("%") else ""
    digits = digits.replace(",", "")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + percent
