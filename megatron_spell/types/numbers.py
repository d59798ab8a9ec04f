"""Numbers as people write them: "-$5.2 million", "(1,250)", "12.5 %", "1 3/4", "1.2 x 10^6". Nothing is ever evaluated.

What could be read in two ways is refused: "1,25", "5 m" (metres or millions), "12% decrease" (12 or -12), "5 or more".
"""

import math
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

MAX_CHARS = 200  # a number with its unit is shorter; the bound keeps every pattern here in constant time

_SCALES = {
    **dict.fromkeys(("bp", "bps", "basis point"), 1e-4),
    **dict.fromkeys(("%", "pct", "percent", "per cent", "percentage", "percentage point", "percent point"), 1e-2),
    **dict.fromkeys(("pp", "ppt"), 1e-2),
    "dozen": 12.0,
    "hundred": 1e2,
    **dict.fromkeys(("thousand", "k"), 1e3),
    "lakh": 1e5,
    **dict.fromkeys(("million", "mn", "mln", "mil", "m", "mm"), 1e6),
    "crore": 1e7,
    **dict.fromkeys(("billion", "bn", "bln", "b"), 1e9),
    **dict.fromkeys(("trillion", "tn", "trn", "t"), 1e12),
}
_PLAIN_NAMES = {_SCALES[name]: f" {name}" for name in ("bps", "dozen", "hundred", "thousand", "lakh", "million")}
_PLAIN_NAMES |= {1e-2: "%"} | {_SCALES[name]: f" {name}" for name in ("crore", "billion", "trillion")}

_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"))
_GROUP_MARK = re.compile(r"(?<=[0-9])(?<![0-9]{4})[\u00a0\u2009\u202f'\u2019](?=[0-9]{3}(?![0-9]))")
# Without these two, normalising would make 103 of "10³" and 11/2 of "1½".
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
_AFTER_WHOLE = re.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])")
_CURRENCY = re.compile(
    r"(?:(?:\b(?:US|HK|NT|CA|AU|A|C|S))?[$]|[\u20ac\u00a3\u00a5\u20b9\u20a9]"
    r"|(?i:(?<![a-z])(?:usd|eur|gbp|jpy|cny|rmb|inr|cad|aud|chf|hkd)(?![a-z]))|(?<![^\W_])Rs\b\.?)(?P<accounts>\s*\()?"
)
_CURRENCY_NAME = re.compile(r"(?i:\b(?:dollars?|euros?|pounds?|yen|yuan|rupees?)\b)")
_EXPONENT = r"10\s*(?:\^|\*\*)\s*[{(]?([-+]?[0-9]{1,3})[})]?"
_TIMES_POWER_OF_TEN = re.compile(rf"\s*(?:[\u00d7xX*\u00b7\u22c5]|\\times|\\cdot)\s*{_EXPONENT}")
_POWER_OF_TEN = re.compile(rf"(?<![0-9.,^]){_EXPONENT}")
_LEAD = re.compile(
    r"(?:\s*(?:[~\u2248:=]|(?i:about|approximately|approx\.?|around|roughly|nearly|almost|exactly|equal to|equals"
    r"|some|just|only|a total of|positive)(?![a-z])))*\s*"
)
_CORE = re.compile(
    r"(?P<outside>[-+]|(?i:minus|negative)\b)?\s*(?P<paren>\()?\s*(?P<inside>[-+]|(?i:minus|negative)\b)?\s*"
    r"(?:(?P<whole>[0-9]{1,9})\s{1,3}(?=[0-9]{1,3}\s?/))?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE](?P<power>[-+]?[0-9]{1,3})(?![0-9]))?"
    r"(?:\s*/\s*(?P<below>[0-9]+(?:\.[0-9]+)?))?"
)
_SCALE_NAME = (
    r"(?i:pct|percent\s{1,3}points?|percentage\s{1,3}points?|percentage|per\s?cent|pp|ppt|bps?|basis\s{1,3}points?"
    r"|dozens?|hundreds?|thousands?|lakhs?|millions?|crores?|billions?|trillions?|mn|mln|mil|bn|bln|tn|trn)"
)
_SCALE = re.compile(rf"\s*(%|-?{_SCALE_NAME}(?![^\W_])|(?:[kKB]|MM?)(?![^\W_]))")
_SCALE_OF_MONEY = re.compile(r"\s*(mm?|[bBtT]|MM?)(?![^\W_])")
_SCALE_APART = re.compile(
    rf"[\s,]*(?:[^\W\d]{{1,12}}\s{{1,3}}){{0,2}}\(?\s*in\s{{1,3}}({_SCALE_NAME})(?![^\W_])"
    rf"|\s*\(\s*(%|{_SCALE_NAME})(?![^\W_])"
)
_CLOSE = re.compile(r"\s*\)")
_UNIT = re.compile(r"(?:[^\W\d]+(?:\^[23])?)?(?:[\s./'()&-]+[^\W\d]+(?:\^[23])?){0,8}[\s.)]*")
_NO_UNIT = re.compile(
    rf"(?i:\b(?:or|and|but|not|nor|plus|minus|versus|vs|half|quarter|third|halves|quarters|thirds)\b)"
    rf"|(?<![^\W_]){_SCALE_NAME}(?![^\W_])"
)
_DOWNWARD = (
    r"(?i:decreas\w{1,3}|declin\w{1,3}|drop(?:ped)?|reduction|reduced|loss(?:es)?|lost|lower|less|fewer|fall|fell"
    r"|below|down|negative|shortfall|deficit|outflows?)\b"
)
_NO_WORD_BETWEEN = r"(?!(?i:of|in|on|for|from|by|at|to|than|since|per|as|due|the)\b)"
_OPEN_SCALE = re.compile(r"\s*(mm?|[btT])(?![^\W_]|[\^/])")  # not "m^2", "m/s"
_OPEN_SIGN = re.compile(rf"[\s(-]{{0,4}}(?:{_NO_WORD_BETWEEN}[^\W\d][\w-]{{0,20}}\s{{1,3}}){{0,3}}({_DOWNWARD})")


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

    None when there is none, when another one follows, when it is not finite, and when its sign or scale is open: "12%
    decrease" without a minus, "5 m" without a currency. Parentheses around a number without a sign make it negative, as
    in accounts. A scale may stand apart: "5.2 (in millions)".
    """
    return _parse(text) if len(text) <= MAX_CHARS else None


@lru_cache(maxsize=1024)  # a gold is compared with many answers
def _parse(text: str) -> Number | None:
    found = _scan(text, accounts=True)
    if found is None:
        return None
    number, rest = found
    if not _UNIT.fullmatch(rest) or _NO_UNIT.search(rest) or open_word(number, rest):
        return None
    return number


def leading_number(text: str) -> tuple[Number, str] | None:
    """The number that `text` begins with and what follows it, up to MAX_CHARS characters of both.

    Parentheses around all of it do not change its sign; those of accounts do, which a currency stands before or a
    scale behind: "$(5.2)", "(5.2)%".
    """
    found = _scan(text[:MAX_CHARS], accounts=False)
    return found if found and (found[1] or len(text) <= MAX_CHARS) else None


def open_word(number: Number, rest: str) -> str | None:
    """The word behind a number that leaves its scale ("m") or its sign open ("decrease"); None without one.

    A minus settles the sign, a scale that is written out the scale.
    """
    scale = None if number.states_scale else _OPEN_SCALE.match(rest)
    sign = _OPEN_SIGN.match(rest) if number.written > 0 else None
    found = scale or sign
    return found[1].lower() if found else None


def _scan(text: str, *, accounts: bool) -> tuple[Number, str] | None:
    currencies = list(_CURRENCY.finditer(text))
    accounts = accounts or any(found["accounts"] for found in currencies)
    text = _plain(text)
    start = _LEAD.match(text)
    core = _CORE.match(text, start.end() if start else 0)
    if core is None or (core["outside"] and core["inside"]):
        return None
    money = bool(currencies) or _CURRENCY_NAME.search(text) is not None
    scales = _scales(text, core.end(), opened=core["paren"] is not None, money=money)
    if scales is None:
        return None
    sign = core["outside"] or core["inside"]
    negative = core["paren"] is not None and (accounts or scales.outside) if sign is None else sign != "+"
    number = _number(core, "-" if negative else "", scales.found)
    return None if number is None else (number, text[scales.stop :])


def _plain(text: str) -> str:
    """Without currency, with ASCII digits, slash and minus, and powers of ten as an exponent."""
    text = _AFTER_WHOLE.sub(" ", _GROUP_MARK.sub("", text))
    text = _RAISED.sub(lambda raised: "^" + raised[0], text)
    text = unicodedata.normalize("NFKC", text).translate(_DASHES).replace("\u2044", "/")
    text = _TIMES_POWER_OF_TEN.sub(r"e\1", _CURRENCY.sub(lambda found: found["accounts"] or "", text))
    return _POWER_OF_TEN.sub(r"1e\1", text).strip().rstrip(".").rstrip()


@dataclass(frozen=True, slots=True)
class _Scales:
    """The scales behind a number, where they end, and whether one stands behind the number's closing parenthesis."""

    found: tuple[float, ...]
    stop: int
    outside: bool = False


def _scales(text: str, start: int, *, opened: bool, money: bool) -> _Scales | None:
    """At most two from `start` on; None for scales that do not agree and for a parenthesis that is not closed."""
    direct = _direct_scales(text, start, opened=opened, money=money)
    if direct is None or (len(direct.found) == 2 and min(direct.found) < 1):
        return None  # "5 %%", "5 % million"
    apart = _SCALE_APART.match(text, direct.stop)
    if apart is None:
        return direct
    said = _scale_of(apart[1] or apart[2])
    return _Scales((said,), apart.end(), direct.outside) if direct.found in ((), (said,)) else None


def _direct_scales(text: str, start: int, *, opened: bool, money: bool) -> _Scales | None:
    found: list[float] = []
    closed, outside, stop = not opened, False, start
    for _ in range(2):
        if not closed and (close := _CLOSE.match(text, stop)):
            closed, stop = True, close.end()
        match = _SCALE.match(text, stop) or (_SCALE_OF_MONEY.match(text, stop) if money and not found else None)
        if match is None:
            break
        outside |= opened and closed
        found.append(_scale_of(match[1]))
        stop = match.end()
    if not closed and (close := _CLOSE.match(text, stop)):
        closed, stop = True, close.end()
    return _Scales(tuple(found), stop, outside) if closed else None


def _scale_of(name: str) -> float:
    name = " ".join(name.lower().lstrip("-").split())
    return _SCALES[name] if name in _SCALES else _SCALES[name.removesuffix("s")]


def _number(core: re.Match[str], sign: str, scales: tuple[float, ...]) -> Number | None:
    text = core["digits"].replace(",", "") + (f"e{core['power']}" if core["power"] else "")
    written = float(text)
    if core["below"] is not None:
        below, whole = float(core["below"]), core["whole"]
        if below == 0 or (whole and written >= below):
            return None
        text, written = f"{text}/{core['below']}", written / below
        if whole:
            text, written = f"{whole} {text}", float(whole) + written
    elif core["whole"]:
        return None
    number = Number(
        sign + text + "".join(_PLAIN_NAMES[scale] for scale in scales),
        -written if sign else written,
        math.prod(scales, start=1.0),
    )
    return number if math.isfinite(number.value) else None
