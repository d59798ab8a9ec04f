"""The words that two short answers are compared by. Linear in the length of the text."""

import re
import unicodedata

SEPARATOR = ""

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(
    rf"(?<![^\W_])-?[0-9]+(?:,[0-9]{{3}})*(?:\.[0-9]+)?(?![^\W_])\s?%?|[{_CJK}]|[^\W_{_CJK}]+|(?P<separator>[,;/|&\n\u3001])"
)
_UNSPACED = re.compile(f"[{_CJK}]")
_SPACED_INITIAL = re.compile(r"(?<![^\W_])([^\W\d_]\.)\s{1,3}(?=[^\W\d_]\.)")  # "J. K. Rowling" is "J.K. Rowling"
_IN_WORD_MARK = re.compile(r"(?<=[^\W\d_])[.'\u2019]")  # "U.S.", "isn't", "Dr."
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010](?=[^\W_])")
_PERCENT = re.compile(r"(?<=[0-9])\s{0,3}per\s{0,3}cent\b")
_ARTICLES = frozenset({"a", "an", "the"})
_LETTER_A = re.compile(r"\S\s+A(?![^\W_])|\s[Aa]\W*$")

_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september")
_MONTHS += ("october", "november", "december")
_MONTH = r"(?P<month>sept|" + "|".join(rf"{name[:3]}(?:{name[3:]})?" for name in _MONTHS) + r")(?![^\W_])\.?"
_DAY = r"(?P<day>[0-3]?[0-9])(?:st|nd|rd|th)?(?![^\W_])"
_YEAR = r"(?P<year>[12][0-9]{3})(?![^\W_])"
_DATES = (
    re.compile(rf"(?<![^\W_]){_DAY}\s{{1,3}}(?:of\s{{1,3}})?{_MONTH}(?:,?\s{{1,3}}{_YEAR})?"),
    re.compile(rf"(?<![^\W_]){_MONTH}\s{{1,3}}{_DAY}(?:,?\s{{1,3}}{_YEAR})?"),
)
_ISO_DATE = re.compile(r"(?<![\w-])([12][0-9]{3})-(0[1-9]|1[0-2])-([0-3][0-9])(?![\w-])")

_CURRENCIES = {
    **dict.fromkeys(("$", "usd", "dollar", "dollars"), "dollar"),
    **dict.fromkeys(("\u20ac", "eur", "euro", "euros"), "euro"),
    **dict.fromkeys(("\u00a3", "gbp"), "pound"),
    **dict.fromkeys(("\u00a5", "jpy", "yen"), "yen"),
    **dict.fromkeys(("\u20b9", "inr", "rupee", "rupees"), "rupee"),
}
_CURRENCY = re.compile("|".join(rf"\b{name}\b" if name.isalpha() else re.escape(name) for name in _CURRENCIES))


def words(text: str, *, letter_a: bool = False, join_hyphens: bool = False) -> list[str]:
    """The words of `text` in lower case, with "" for a separator between words.

    Articles go unless nothing else is left; with `letter_a` "a" is none of them. Dates are put in one order. Hyphens
    part words, or with `join_hyphens` make them one.
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").casefold()
    text = _IN_WORD_MARK.sub("", _SPACED_INITIAL.sub(r"\1", _with_plain_dates(text)))
    text = _PERCENT.sub("%", _HYPHEN.sub("", text) if join_hyphens else text)
    found = [SEPARATOR if m["separator"] else _plain_number(m[0]) for m in _TOKEN.finditer(text)]
    without_articles = [word for word in found if word not in _ARTICLES or (letter_a and word == "a")]
    found = without_articles if any(without_articles) else found
    spoken = [i for i, word in enumerate(found) if word != SEPARATOR]
    return found[spoken[0] : spoken[-1] + 1] if spoken else []


def names_letter_a(text: str) -> bool:
    """Whether an A in `text` is a letter, not the article: "Vitamin A", "John A. Smith"."""
    return _LETTER_A.search(text) is not None


def has_hyphen(text: str) -> bool:
    return _HYPHEN.search(text) is not None


def is_unspaced(word: str) -> bool:
    """Whether `word` is a character of a script that puts no spaces between words."""
    return _UNSPACED.match(word) is not None


def currencies(text: str) -> set[str]:
    return {_CURRENCIES[found[0]] for found in _CURRENCY.finditer(text.casefold())}


def _with_plain_dates(text: str) -> str:
    """ "20 July 1969", "July 20th, 1969" and "1969-07-20" as "july 20 1969"."""
    text = _ISO_DATE.sub(lambda date: f"{_MONTHS[int(date[2]) - 1]} {int(date[3])} {date[1]}", text)
    for pattern in _DATES:
        text = pattern.sub(_plain_date, text)
    return text


def _plain_date(date: re.Match[str]) -> str:
    month = next(name for name in _MONTHS if name.startswith(date["month"][:3]))
    return " ".join(filter(None, (month, str(int(date["day"])), date["year"])))


def _plain_number(word: str) -> str:
    """Numbers without thousands separators, blanks and trailing zeros; other words as they are."""
    if not word[0].isdigit() and word[0] != "-":
        return word
    digits, percent = word.rstrip(" %"), "%" if word.endswith("%") else ""
    digits = digits.replace(",", "")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + percent
