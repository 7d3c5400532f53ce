"""Numbers as people read them. What is not a number is a dash."""

import math
import re
from dataclasses import dataclass

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Scale:
    """How scores of a metric are shown.

    Attributes:
        name: Of the metric.
        factor: What a score is multiplied by.
        digits: Behind the point.
        unit: Behind a score.
        gap_unit: Behind a difference of two scores.
        least: The smallest span of an axis, as shown.
        floor: Scores below it, as shown, are cut off in pictures where any lies above; None if none are.
    """

    name: str
    factor: float
    digits: int
    unit: str
    gap_unit: str
    least: float
    floor: float | None

    def score(self, value: float | None) -> str:
        """A score with its unit."""
        return _with_unit(self.number(value), self.unit)

    def number(self, value: float | None) -> str:
        """A score without its unit."""
        return decimal(None if value is None else self.factor * value, self.digits)

    def gap(self, value: float) -> str:
        """A difference of scores, signed, without its unit."""
        return signed(self.factor * value, self.digits)

    def size(self, value: float) -> str:
        """How large a difference is, with its unit."""
        return _with_unit(decimal(abs(self.factor * value), self.digits), self.gap_unit)

    def interval(self, low: float, high: float) -> str:
        """Both ends of an interval of a difference, without their unit."""
        return f"[{self.gap(low)}, {self.gap(high)}]"

    def shown(self, value: float) -> float:
        """A score, or a difference, as it is shown."""
        return self.factor * value


def scale_of(metric: str) -> Scale:
    """How scores of a metric are shown: accuracy in percent, anything else as a number."""
    if metric == "accuracy":
        return Scale("accuracy", 100.0, 2, "%", "points", least=1.0, floor=None)
    if metric == "R2":
        return Scale("R²", 1.0, 3, "", "", least=0.01, floor=-1.0)
    return Scale(metric, 1.0, 3, "", "", least=0.01, floor=None)


def _with_unit(number: str, unit: str) -> str:
    return f"{number} {unit}" if unit and number != DASH else number


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


def seconds(value: float | None) -> str:
    """A time, in seconds, to three digits."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rate(value: float | None) -> str:
    """A learning rate."""
    return DASH if value is None else f"{value:g}".replace("-", MINUS)


def chance(value: float) -> str:
    """A p value, or another share of all cases."""
    if not math.isfinite(value):
        return DASH
    return "< 0.001" if 0 <= value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def pair(arm: str, base: str) -> str:
    """What is compared: `arm - base`."""
    return f"{arm} {MINUS} {base}"


def number_of(what: int, one: str, many: str | None = None) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{what} {one if what == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """A text without control characters, which neither HTML nor a terminal shows."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
