"""How people write one number: ways that mean it, and ways that mean another one. Written without the parser."""

from collections.abc import Iterator
from decimal import Decimal

SCALES = {"percent": Decimal("0.01"), "thousand": Decimal(1000), "million": Decimal(1_000_000)}
MINUS = "\u2212"


def digits(number: Decimal, separators: bool = False) -> str:
    """Without exponent, as short as it goes."""
    text = format(number, ",f" if separators else "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def money(number: Decimal, mark: str = "$") -> str:
    return ("-" if number < 0 else "") + mark + digits(abs(number), separators=True)


def rounded(number: Decimal, significant: int) -> Decimal:
    return Decimal(f"{number:.{significant - 1}e}")


def power_of_ten(number: Decimal, between: str = " \\times 10^{%d}") -> str:
    mantissa, _, exponent = f"{number:.15e}".partition("e")
    return mantissa + between % int(exponent)


def right_numbers(number: Decimal) -> dict[str, str]:
    """Ways to write `number` itself, without a scale that its gold would have to state; as plain answers."""
    text = digits(number)
    forms = {
        "as written": text,
        "thousands separators": digits(number, separators=True),
        "currency": money(number),
        "currency code": "USD " + digits(number, separators=True),
        "currency behind": digits(number, separators=True) + " euros",
        "unit": digits(number, separators=True) + " shares of common stock",
        "trailing zeros": text + ("00" if "." in text else ".00"),
        "rounded within 0.1 %": digits(rounded(number, 4)),
        "scientific": f"{number:.15e}",
        "power of ten": power_of_ten(number, " \u00d7 10^%d"),
        "fraction": digits(2 * number) + "/2",
        "approximately": "approximately " + money(number),
        "tilde": "~" + text,
    }
    if number < 0:
        forms["unicode minus"] = MINUS + digits(-number, separators=True)
        forms["minus in words"] = "minus " + digits(-number)
        forms["accounts"] = f"({digits(-number, separators=True)})"
        forms["accounts in dollars"] = f"$({digits(-number, separators=True)})"
    else:
        forms["plus"] = "+" + text
    return forms


def right_scales(value: Decimal) -> dict[str, str]:
    """Ways to write the value with a scale of one's own that fits it."""
    return {
        "percent": digits(value * 100) + "%",
        "basis points": digits(value * 10_000, separators=True) + " basis points",
        "thousand": digits(value / 1000) + " thousand",
        "millions": money(value / 1_000_000) + " million",
        "million, short": money(value / 1_000_000) + "m",
        "billions": digits(value / 1_000_000_000) + " billion",
        "in millions": digits(value / 1_000_000) + " (in millions)",
    }


def right_as_stated(number: Decimal, scale: str) -> dict[str, str]:
    """Ways to write a gold that states a scale: with it, and as the bare number."""
    text = digits(number)
    stated = {
        "percent": [f"{text}%", f"{text} %", f"{text} per cent", f"{text} percentage points", f"{text}% (rounded)"],
        "thousand": [f"{text} thousand", f"{text}K", f"{money(number)} thousand", f"{text} (in thousands)"],
        "million": [f"{text} million", f"{money(number)}M", f"{text} mn", f"{money(number)} million dollars"],
    }[scale]
    if number < 0:
        stated += [f"({digits(-number)}{'%' if scale == 'percent' else ' ' + scale})"]
    return {f"stated: {form}": form for form in stated} | {f"bare: {k}": v for k, v in right_numbers(number).items()}


def responses(number: Decimal, unit: str = "") -> dict[str, str]:
    """Whole responses that end in `number`; `unit` is "%" or a scale word, or nothing."""
    text, latex = digits(number, separators=True), digits(number).replace(",", "{,}")
    unit_in_latex = unit.replace("%", "\\%") if unit in ("", "%") else f" \\text{{{unit}}}"
    text += unit if unit in ("", "%") else f" {unit}"
    cash = money(number) + (f" {unit}" if unit not in ("", "%") else unit)
    return {
        "sentence": f"We subtract.\nTherefore, the answer is {text}.",
        "capitals": f"THE ANSWER IS {text.upper()}",
        "in currency": f"Therefore, the answer is {cash}.",
        "approximately": f"Hence the answer is approximately {text}",
        "bold": f"So the **answer** is: **{text}**.",
        "next line": f"The final answer is\n\n{text}\n",
        "boxed": f"This gives \\boxed{{{latex}{unit_in_latex}}}.",
        "inline math": f"The answer is ${latex}{unit_in_latex}$.",
        "boxed in math": f"The answer is $\\boxed{{{latex}{unit_in_latex}}}$.",
        "equation": f"The answer is 3 + 4 = {text}",
        "heading": f"**Final answer:** {text}",
        "after thinking": f"<think>the answer is 7</think>The answer is {text}.",
        "with a date": f"The answer is {text} as of December 31, 2019.",
        "with a remark": f"The answer is {text} (rounded to 2 decimal places).",
    }


def wrong_numbers(number: Decimal) -> Iterator[tuple[str, Decimal]]:
    """Numbers that are not `number`, which is not 0: its negative, near it, and off by a scale."""
    yield "sign flip", -number
    yield "1 % more", number * Decimal("1.01")
    yield "1 % less", number * Decimal("0.99")
    yield "0.2 % more", number * Decimal("1.002")
    yield "0.2 % less", number * Decimal("0.998")
    short = rounded(number, 3)
    last_digit = Decimal(1).scaleb(short.adjusted() - 2)
    for name, off in (("up", last_digit), ("down", -last_digit)):
        if abs(short + off - number) > Decimal("0.0016") * abs(number):
            yield f"last of three digits {name}", short + off
    for factor in (10, 100, 1000, 1_000_000):
        yield f"x {factor}", number * factor
        yield f"/ {factor}", number / factor


def wrong_writing(number: Decimal) -> dict[str, str]:
    """Ways to write a number other than the gold that could slip through."""
    forms = {"currency": money(number), "scientific": f"{number:.15e}"}
    return forms | ({"accounts": f"({digits(-number)})"} if number < 0 else {})
