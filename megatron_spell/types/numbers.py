"""Numbers as people write them: "-$5.2 million", "(1,250)", "12.5 %", "3/4", "1.2e6". Nothing is ever evaluated."""

import math
import re
import unicodedata
from dataclasses import dataclass

MAX_CHARS = 200  # a number with its unit is shorter; the bound keeps every pattern here in constant time

_SCALES = {
    "%": 1e-2,
    "pct": 1e-2,
    "percent": 1e-2,
    "per cent": 1e-2,
    "percentage point": 1e-2,
    "percentage points": 1e-2,
    "hundred": 1e2,
    "thousand": 1e3,
    "million": 1e6,
    "millions": 1e6,
    "billion": 1e9,
    "billions": 1e9,
    "trillion": 1e12,
    "trillions": 1e12,
    "mn": 1e6,
    "mln": 1e6,
    "bn": 1e9,
    "bln": 1e9,
    # One letter counts only as a capital: "5 m" may be metres.
    "K": 1e3,
    "M": 1e6,
    "MM": 1e6,
    "B": 1e9,
}

_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"))
_GROUP_SPACE = re.compile(r"(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_CURRENCY = re.compile(
    r"(?:\b(?:US|HK|NT|AU|A|C|S))?[$]|[\u20ac\u00a3\u00a5\u20b9\u20a9]"
    r"|(?i:(?<![a-z])(?:usd|eur|gbp|jpy|cny|rmb|inr|cad|aud|chf|hkd)(?![a-z]))"
)
_POWER_OF_TEN = re.compile(r"\s*(?:\u00d7|x|\*|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*[{(]?([-+]?[0-9]{1,3})[})]?")
_LEAD = re.compile(
    r"(?:\s*(?:[~\u2248:=]|(?i:about|approximately|approx\.?|around|roughly|nearly|almost|exactly|equal to|equals"
    r"|some|just|only|a total of|positive)(?![a-z])))*\s*"
)
_CORE = re.compile(
    r"(?P<paren>\()?\s*(?P<sign>[-+]|(?i:minus|negative)\b)?\s*"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE](?P<power>[-+]?[0-9]{1,3})(?![0-9]))?"
    r"(?:\s*/\s*(?P<below>[0-9]+(?:\.[0-9]+)?))?"
)
_SCALE = re.compile(
    r"\s*-?(%|(?i:pct|percentage\s{1,3}points?|per\s?cent|hundred|thousand|millions?|billions?|trillions?"
    r"|mn|mln|bn|bln)(?![^\W_])|(?:K|MM|M|B)(?![^\W_]))"
)
_CLOSE = re.compile(r"\s*\)")
_UNIT = re.compile(r"[^\W\d]*(?:[\s./'()&-]+[^\W\d]+){0,8}[\s.)]*")


@dataclass(frozen=True, slots=True)
class Number:
    """`text` is the number in plain writing, with its scale ("5.2 million"); `written` leaves the scale out (5.2)."""

    text: str
    written: float
    scale: float

    @property
    def value(self) -> float:
        return self.written * self.scale

    @property
    def states_scale(self) -> bool:
        return self.scale != 1.0


def parse_number(text: str) -> Number | None:
    """The number that `text` as a whole is, with at most words of approximation before it and a unit after it.

    None when there is none, when another one follows, or when it is not finite. Parentheses around a number without a
    sign make it negative, as in accounts. A single ambiguous comma ("1,25") is refused.
    """
    found = _scan(text, accounts=True) if len(text) <= MAX_CHARS else None
    if found is None:
        return None
    number, rest = found
    return number if _UNIT.fullmatch(rest) else None


def leading_number(text: str) -> tuple[Number, str] | None:
    """The number that `text` begins with and what follows it, up to MAX_CHARS characters of both.

    Parentheses around the number do not change its sign.
    """
    found = _scan(text[:MAX_CHARS], accounts=False)
    return found if found and (found[1] or len(text) <= MAX_CHARS) else None


def _scan(text: str, *, accounts: bool) -> tuple[Number, str] | None:
    text = _plain(text)
    start = _LEAD.match(text)
    core = _CORE.match(text, start.end() if start else 0)
    if core is None:
        return None
    scale, words, closed, stop = _scales(text, core.end(), opened=core["paren"] is not None)
    if core["paren"] and not closed:
        return None
    sign = "-" if core["sign"] not in (None, "+") or (accounts and core["paren"] and not core["sign"]) else ""
    number = _number(core, sign, scale, words)
    return None if number is None else (number, text[stop:])


def _plain(text: str) -> str:
    """Without currency, with ASCII digits and minus, and powers of ten as an exponent."""
    text = unicodedata.normalize("NFKC", _GROUP_SPACE.sub("", text)).translate(_DASHES)
    text = _POWER_OF_TEN.sub(r"e\1", _CURRENCY.sub("", text))
    return text.strip().rstrip(".").rstrip()


def _scales(text: str, start: int, *, opened: bool) -> tuple[float, str, bool, int]:
    """The product of at most two scales from `start` on, their words, whether ")" was met, and where they end."""
    scale, words, closed, stop = 1.0, "", False, start
    for _ in range(2):
        if opened and not closed and (close := _CLOSE.match(text, stop)):
            closed, stop = True, close.end()
        match = _SCALE.match(text, stop)
        if match is None:
            break
        word = _scale_name(match.group(1))
        scale *= _SCALES[word]
        words += "%" if _SCALES[word] == 1e-2 else f" {word}"
        stop = match.end()
    if opened and not closed and (close := _CLOSE.match(text, stop)):
        closed, stop = True, close.end()
    return scale, words, closed, stop


def _scale_name(word: str) -> str:
    return word if word in _SCALES else " ".join(word.lower().split())


def _number(core: re.Match[str], sign: str, scale: float, words: str) -> Number | None:
    digits, below = core["digits"].replace(",", ""), core["below"]
    text = sign + digits + (f"e{core['power']}" if core["power"] else "")
    written = float(text)
    if below is not None:
        if float(below) == 0:
            return None
        text, written = f"{text}/{below}", written / float(below)
    number = Number(text + words, written, scale)
    return number if math.isfinite(number.value) else None
