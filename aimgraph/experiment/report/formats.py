"""Numbers as people read them. What is not a number is a dash."""

import math
from dataclasses import dataclass

from aimgraph.web.formats import DASH, MINUS, decimal, signed


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
