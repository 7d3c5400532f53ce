"""Paired differences with their intervals, one row each."""

import math
import statistics
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from aimgraph.experiment.report.formats import pair, scale_of
from aimgraph.experiment.report.gathered import is_declared
from aimgraph.experiment.report.pictures.axes import BELOW, Axis, below, round_ticks
from aimgraph.experiment.report.pictures.marks import Mark, marks_of, point
from aimgraph.experiment.report.pictures.svg import BOLD, WIDTH, Inks
from aimgraph.experiment.results import Experiment
from aimgraph.experiment.statistics import Comparison
from aimgraph.web.svg import FONT, drawing, element, shortened, width_of, words

_TOP, _ROW, _SIDE = 6.0, 36.0, 16.0


def forest(experiment: Experiment, comparisons: Sequence[Comparison], inks: Inks, name: str, on: str) -> Element | None:
    """Differences with their 95 % intervals; None where there are none.

    Args:
        experiment: Whose they are. Its other differences share the axis.
        comparisons: What to show.
        inks: Colours.
        name: Of the picture's identifiers.
        on: Whose scores these are, ``test`` or ``validation``.
    """
    if not comparisons:
        return None
    scale, marks = scale_of(experiment.metric), marks_of(experiment)
    reach = scale.shown(_reach([*experiment.comparisons, *experiment.at_equal_seconds], scale.least / scale.factor))
    bottom = _TOP + _ROW * len(comparisons)
    unit = f", {scale.gap_unit}" if scale.gap_unit else ""
    title = f"difference of {on} {scale.name}{unit}"
    x = Axis(-reach, reach, _SIDE, WIDTH - _SIDE, round_ticks(-reach, reach, 6), title)
    rows = [
        _row(experiment, one, marks[one.arm], x, _TOP + _ROW * place, inks) for place, one in enumerate(comparisons)
    ]
    told = "; ".join(_words(experiment, one) for one in comparisons)
    about = f"Means of paired differences with 95 % intervals: {told}."
    size = (WIDTH, bottom + BELOW)
    return drawing(name, title.capitalize(), about, size, *below(x, bottom, inks), *rows)


def _reach(comparisons: Sequence[Comparison], least: float) -> float:
    """How far the axis goes to both sides: to the end of the widest interval, unless that dwarfs most others."""
    ends = [max(abs(one.low), abs(one.high)) for one in comparisons if math.isfinite(one.mean)]
    middle = statistics.median(ends) if ends else 0.0
    widest = min(max(ends, default=0.0), _DWARFS * middle) if middle else max(ends, default=0.0)
    return 1.08 * max(widest, least)


_DWARFS = 4.0


def _words(experiment: Experiment, one: Comparison) -> str:
    scale = scale_of(experiment.metric)
    if not math.isfinite(one.mean):
        return f"{pair(one.arm, one.base)}: not a number"
    verdict = one.verdict if is_declared(experiment, one) else "exploratory"
    return f"{pair(one.arm, one.base)}: {scale.gap(one.mean)} {scale.interval(one.low, one.high)}, {verdict}"


def _row(experiment: Experiment, one: Comparison, mark: Mark, x: Axis, top: float, inks: Inks) -> Element:
    scale, declared = scale_of(experiment.metric), is_declared(experiment, one)
    shown = math.isfinite(one.mean)
    told = f"{scale.gap(one.mean)} {scale.interval(one.low, one.high)}" if shown else "not a number"
    room = WIDTH - 2 * _SIDE - width_of(told) - 10
    ink, weight, right = inks.text, "600" if declared else None, WIDTH - _SIDE
    made = element("g", element("title", _words(experiment, one)), *_lines(x, top, inks))
    made.append(
        words(_shortened(one, room, BOLD if declared else FONT), _SIDE, top + 14, ink, FONT, font_weight=weight)
    )
    made.append(words(told, right, top + 14, ink, text_anchor="end"))
    if shown:
        for part in _interval(mark, x, [scale.shown(end) for end in (one.low, one.mean, one.high)], top + 27, inks):
            made.append(part)
        if abs(scale.shown(one.mean)) <= x.high:
            made.append(point(mark, x.at(scale.shown(one.mean)), top + 27, inks, hollow=not declared))
    return made


def _shortened(one: Comparison, room: float, size: float) -> str:
    """What is compared; where it is too long, both names are shortened, the longer one first."""
    names = [one.arm, one.base]
    for place in sorted((0, 1), key=lambda place: -len(names[place])):
        other = width_of(pair("", names[1 - place]), size)
        names[place] = shortened(names[place], max(room - other, (room - width_of(pair("", ""), size)) / 2), size)
    return pair(*names)


def _lines(x: Axis, top: float, inks: Inks) -> list[Element]:
    """The grid behind an interval; names stand above it."""
    places = [x.at(tick.value) for tick in x.ticks]
    made = [element("line", x1=at, x2=at, y1=top + 18, y2=top + _ROW, stroke=inks.grid) for at in places]
    return [*made, element("line", x1=x.at(0), x2=x.at(0), y1=top + 18, y2=top + _ROW, stroke=inks.text)]


def _interval(mark: Mark, x: Axis, ends: list[float], y: float, inks: Inks) -> list[Element]:
    """The line of an interval, with an arrow where it goes beyond the axis."""
    low, high = (min(max(end, x.low), x.high) for end in (ends[0], ends[2]))
    ink = mark.ink(inks)
    parts = [element("line", x1=x.at(low), x2=x.at(high), y1=y, y2=y, stroke=ink, stroke_width=2)]
    for end, kept, way in ((ends[0], low, -1.0), (ends[2], high, 1.0)):
        at = x.at(kept)
        if end != kept:
            tip = f"{at + 7 * way:.2f},{y:.2f} {at:.2f},{y - 4.5:.2f} {at:.2f},{y + 4.5:.2f}"
            parts.append(element("polygon", points=tip, fill=ink))
        else:
            parts.append(element("line", x1=at, x2=at, y1=y - 4, y2=y + 4, stroke=ink, stroke_width=2))
    return parts
