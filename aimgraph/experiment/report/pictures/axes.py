"""Axes with ticks at round numbers."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from aimgraph.experiment.report.pictures.svg import Inks
from aimgraph.web.formats import MINUS, brief
from aimgraph.web.svg import FONT, SMALL, element, width_of, words

_ROUND = (1.0, 2.0, 5.0, 10.0)


def step_of(low: float, high: float, most: int, whole: bool = False) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (and 0.5, 0.2, ...) that makes at most so many steps."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in _ROUND if one * power >= rough * (1 - 1e-9))
    return max(1.0, step) if whole else step


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where, and what is written there."""

    value: float
    label: str


def round_ticks(low: float, high: float, most: int = 6, whole: bool = False) -> list[Tick]:
    """Ticks at multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    step = step_of(low, high, most, whole)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [Tick(number * step, _label(number * step, digits)) for number in range(first, last + 1)]


def _label(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.3g}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def log_ticks(low: float, high: float, unit: str = "", most: int = 5) -> list[Tick]:
    """Ticks of a logarithmic axis: powers of ten, and 2 and 5 times those where there is room; else as of another."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) <= most:
            break
    else:
        inside = inside[:: math.ceil(len(inside) / most)]
    if len(inside) < 2:
        inside = [tick.value for tick in round_ticks(low, high, 3)]
    return [Tick(value, brief(value, unit)) for value in inside]


@dataclass(frozen=True)
class Axis:
    """From values to places.

    Attributes:
        low: The value at `start`.
        high: The value at `end`.
        start: A place in the picture.
        end: Another.
        ticks: Its marks.
        title: What it shows, with the unit.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[Tick]
    title: str
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value; a finite one, and above 0 on a logarithmic axis."""
        turn: Callable[[float], float] = math.log10 if self.log else float
        share = (turn(value) - turn(self.low)) / (turn(self.high) - turn(self.low))
        return self.start + share * (self.end - self.start)


def window(values: Iterable[float], least: float, floor: float | None = None) -> tuple[float, float]:
    """Limits around all finite values, a bit wider than they are, and `least` wide.

    Args:
        values: At least one is finite.
        least: The smallest width.
        floor: A lower limit, which holds where any value is above it.
    """
    kept = [value for value in values if math.isfinite(value)]
    low, high = min(kept), max(kept)
    if floor is not None and high > floor:
        low = max(low, floor)
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def log_window(values: Iterable[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis around values above 0: a bit wider, and a factor of 1.5 wide."""
    kept = list(values)
    low, high = min(kept), max(kept)
    wider = max((high / low) ** 0.1, math.sqrt(1.5 * low / high), 1.02)
    return low / wider, high * wider


def left_margin(ticks: Sequence[Tick]) -> float:
    """Room for the labels and the title of a vertical axis."""
    return 30 + max((width_of(tick.label) for tick in ticks), default=0)


def frame(x: Axis, y: Axis, inks: Inks, left: float | None = None) -> Element:
    """Grid, labels and titles of two axes; the grid begins at `left`, by default where `x` does."""
    made, right, bottom, top = element("g"), x.end, y.start, y.end
    left = x.start if left is None else left
    for tick in y.ticks:
        at = y.at(tick.value)
        made.append(element("line", x1=left, x2=right, y1=at, y2=at, stroke=inks.grid))
        made.append(words(tick.label, left - 6, at + 4, inks.faint, text_anchor="end"))
    for child in below(x, bottom, inks):
        made.append(child)
    middle = (top + bottom) / 2
    made.append(
        words(y.title, 11, middle, inks.text, FONT, text_anchor="middle", transform=f"rotate(-90 11 {middle:.1f})")
    )
    return made


def below(x: Axis, bottom: float, inks: Inks) -> list[Element]:
    """The line, marks, labels and title of a horizontal axis."""
    made = [element("line", x1=x.start, x2=x.end, y1=bottom, y2=bottom, stroke=inks.faint)]
    for tick in x.ticks:
        at = x.at(tick.value)
        made.append(element("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, stroke=inks.faint))
        made.append(words(tick.label, at, bottom + 16, inks.faint, SMALL, text_anchor="middle"))
    made.append(words(x.title, (x.start + x.end) / 2, bottom + 33, inks.text, FONT, text_anchor="middle"))
    return made


BELOW = 42.0
"""Height of what is below a horizontal axis."""
