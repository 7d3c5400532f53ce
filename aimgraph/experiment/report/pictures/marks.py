"""What an arm looks like: the same in every picture."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from aimgraph.experiment.report.pictures.svg import Inks
from aimgraph.experiment.results import Experiment
from aimgraph.web.svg import FONT, element, shortened, width_of, words

_SHAPES = ("circle", "square", "diamond", "up", "down")
_DASHES = (None, "6 3", "2 2.5", "8 3 2 3")


@dataclass(frozen=True)
class Mark:
    """What an arm is drawn with.

    Attributes:
        colour: Place among the colours.
        shape: Of its points.
        dash: Of its lines.
    """

    colour: int
    shape: str
    dash: str | None

    def ink(self, inks: Inks) -> str:
        """Its colour."""
        return inks.arms[self.colour]


def marks_of(experiment: Experiment) -> dict[str, Mark]:
    """Arm -> its mark. The first arm of kind ``base`` has the colour of the text."""
    kinds = {name: arm.kind for name, arm in experiment.recipe.arms.items()}
    base = next((arm for arm in experiment.arms if kinds.get(arm) == "base"), None)
    marks, colours = {}, 6
    for place, arm in enumerate(one for one in experiment.arms if one != base):
        dash = _DASHES[place // colours % len(_DASHES)]
        marks[arm] = Mark(1 + place % colours, _SHAPES[(place + 1) % len(_SHAPES)], dash)
    return {arm: marks.get(arm, Mark(0, _SHAPES[0], None)) for arm in experiment.arms}


def point(mark: Mark, x: float, y: float, inks: Inks, *, hollow: bool = False, tip: str | None = None) -> Element:
    """The shape of an arm at a place; `tip` is shown where a pointer rests on it."""
    fill = inks.paper if hollow else mark.ink(inks)
    look = {"fill": fill, "stroke": mark.ink(inks) if hollow else inks.paper, "stroke_width": 2 if hollow else 1}
    inside = [element("title", tip)] if tip else []
    if mark.shape == "circle":
        return element("circle", *inside, cx=x, cy=y, r=4.5, **look)
    corners = " ".join(f"{x + dx:.2f},{y + dy:.2f}" for dx, dy in _CORNERS[mark.shape])
    return element("polygon", *inside, points=corners, **look)


_CORNERS = {
    "square": ((-4.2, -4.2), (4.2, -4.2), (4.2, 4.2), (-4.2, 4.2)),
    "diamond": ((0, -5.8), (5.8, 0), (0, 5.8), (-5.8, 0)),
    "up": ((0, -5.4), (5.2, 4), (-5.2, 4)),
    "down": ((0, 5.4), (5.2, -4), (-5.2, -4)),
}


def line(mark: Mark, points: Iterable[tuple[float, float]], inks: Inks, width: float = 1.8) -> Element:
    """A line of an arm through places."""
    return element(
        "polyline", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in points), fill="none", stroke=mark.ink(inks),
        stroke_width=width, stroke_dasharray=mark.dash, stroke_linejoin="round", stroke_linecap="round",
    )  # fmt: skip


_ROW = 18.0
_SAMPLE = 30.0
"""Width of the line before a name."""


def legend(marks: Mapping[str, Mark], top: float, width: float, inks: Inks) -> tuple[Element, float]:
    """Names beside their marks, in as many columns as there is room for, and the height of it all."""
    widest = max(width_of(arm, FONT) for arm in marks) + _SAMPLE + 14
    columns = max(1, min(len(marks), int(width // widest)))
    room, found = width / columns, element("g")
    for place, (arm, mark) in enumerate(marks.items()):
        x, y = place % columns * room, top + place // columns * _ROW + _ROW / 2
        found.append(line(mark, [(x + 2, y), (x + 24, y)], inks))
        found.append(point(mark, x + 13, y, inks))
        found.append(words(shortened(arm, room - _SAMPLE - 4, FONT), x + _SAMPLE, y + 4, inks.text, FONT))
    return found, math.ceil(len(marks) / columns) * _ROW
