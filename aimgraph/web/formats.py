"""Numbers and texts as people read them. What is not a number is a dash."""

import math
import re

DASH = "\N{EN DASH}"


MINUS = "\N{MINUS SIGN}"


def decimal(value: float | None, digits: int) -> str:
    """A number with so many digits behind the point; a large one in powers of ten."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}" if abs(value) < _LARGE else f"{value:.3g}"
    return text.replace("-", MINUS) if float(text) else text.replace("-", "")


_LARGE = 1e5


def signed(value: float, digits: int) -> str:
    """The same with a sign, which 0 has not."""
    text = decimal(value, digits)
    return text if text.startswith((DASH, MINUS)) or not float(text) else f"+{text}"


def count(value: float | None) -> str:
    """A whole number, with commas."""
    return DASH if value is None else f"{value:,.0f}"


def brief(value: float | None, unit: str = "") -> str:
    """A number as `1.23 M`, to three digits."""
    if value is None or not math.isfinite(value):
        return DASH
    power = min(len(_PREFIXES) - 1, int(math.log10(abs(value)) / 3 + 1e-9)) if abs(value) >= 1 else 0
    number = value / 1000**power
    if float(f"{number:.3g}") >= 1000 and power < len(_PREFIXES) - 1:
        number, power = number / 1000, power + 1
    text = f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
    return f"{text} {_PREFIXES[power]}{unit}".strip()


_PREFIXES = ("", "k", "M", "G", "T", "P")


def number_of(what: int, one: str, many: str | None = None) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{what} {one if what == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """A text without control characters, which neither HTML nor a terminal shows."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def share_text(value: float) -> str:
    """A share of a whole, in percent to three digits."""
    return f"{100 * value:.3g} %" if math.isfinite(value) else DASH
