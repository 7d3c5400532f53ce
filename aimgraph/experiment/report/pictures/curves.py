"""Means over seeds along an axis, with bands: learning curves, and scores along the strength of a memory."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from xml.etree.ElementTree import Element

from aimgraph.experiment.report.formats import Scale, scale_of
from aimgraph.experiment.report.gathered import Curve, Spread, learning_curves, strength_curves
from aimgraph.experiment.report.pictures.axes import (
    BELOW,
    Axis,
    frame,
    left_margin,
    round_ticks,
    window,
)
from aimgraph.experiment.report.pictures.marks import Mark, legend, line, marks_of, point
from aimgraph.experiment.report.pictures.svg import WIDTH, Inks
from aimgraph.experiment.results import Experiment
from aimgraph.web.svg import drawing, element

_TOP, _HEIGHT, _RIGHT = 10.0, 210.0, 12.0

Places = list[tuple[float, Spread]]


@dataclass(frozen=True)
class Along:
    """A horizontal axis to be.

    Attributes:
        low: Its left end.
        high: Its right end.
        title: What it shows.
        unit: What values are divided by.
        whole: Whether ticks are whole numbers.
        early: Whether what is at the left counts less: the vertical axis need not show all of it.
    """

    low: float
    high: float
    title: str
    unit: float = 1.0
    whole: bool = False
    early: bool = False


def curves_by_epoch(experiment: Experiment, inks: Inks) -> Element | None:
    """Validation scores after each epoch; None where there are none."""
    curves = learning_curves(experiment, "epochs")
    if not curves:
        return None
    last = max(curve.x[-1] for curve in curves.values())
    return _picture(experiment, curves, Along(0, last, "epochs", whole=True, early=True), inks, "curves-epochs")


def curves_by_second(experiment: Experiment, inks: Inks) -> Element | None:
    """The same over the time of training."""
    curves = learning_curves(experiment, "seconds")
    curves = {arm: curve for arm, curve in curves.items() if math.isfinite(curve.x[-1]) and curve.x[-1] > 0}
    if not curves:
        return None
    last = max(curve.x[-1] for curve in curves.values())
    title, unit = next((title, unit) for title, unit, least in _TIMES if last >= least)
    return _picture(experiment, curves, Along(0, last / unit, title, unit, early=True), inks, "curves-seconds")


_TIMES = (
    ("training, hours", 3600.0, 7200.0),
    ("training, minutes", 60.0, 300.0),
    ("training, seconds", 1.0, 0.0),
)


def curves_by_strength(experiment: Experiment, inks: Inks) -> Element | None:
    """Validation scores with the memory multiplied by a factor; None where no arm was probed so."""
    curves = strength_curves(experiment)
    if not curves:
        return None
    low = min(curve.x[0] for curve in curves.values())
    high = max(curve.x[-1] for curve in curves.values())
    return _picture(experiment, curves, Along(low, high, "strength of the memory (trained: 1)"), inks, "strength")


def _picture(experiment: Experiment, curves: Mapping[str, Curve], along: Along, inks: Inks, name: str) -> Element:
    scale, marks = scale_of(experiment.metric), marks_of(experiment)
    low, high = _limits(curves, scale, along.early)
    y_ticks = round_ticks(low, high)
    unit = f", {scale.unit}" if scale.unit else ""
    y = Axis(low, high, _TOP + _HEIGHT, _TOP, y_ticks, f"validation {scale.name}{unit}")
    left = left_margin(y_ticks)
    x_ticks = round_ticks(along.low, along.high, 6, along.whole)
    wide = 0.015 * (along.high - along.low)
    x = Axis(along.low, along.high + wide, left, WIDTH - _RIGHT, x_ticks, along.title)
    parts = [_series(marks[arm], curve, x, y, (scale, along.unit), inks) for arm, curve in curves.items()]
    clip = element("clipPath", element("rect", x=left, y=_TOP, width=x.end - left, height=_HEIGHT), id=f"{name}-clip")
    bands = element("g", *(band for band, _, _ in parts), clip_path=f"url(#{name}-clip)", opacity=_opacity(len(parts)))
    lines = element("g", *(drawn for _, drawn, _ in parts), clip_path=f"url(#{name}-clip)")
    ends = element("g", *(one for _, _, points in parts for one in points))
    names, height = legend({arm: marks[arm] for arm in curves}, _TOP + _HEIGHT + BELOW, WIDTH, inks)
    title = f"Validation {scale.name} over {along.title}"
    size = (WIDTH, _TOP + _HEIGHT + BELOW + height)
    return drawing(name, title, _about(curves, scale), size, clip, frame(x, y, inks), bands, lines, ends, names)


def _limits(curves: Mapping[str, Curve], scale: Scale, early: bool) -> tuple[float, float]:
    """Limits around the scores of all seeds; of long trainings, around those after the first quarter and some below."""
    every = [scale.shown(value) for curve in curves.values() for at in curve.values for value in at]
    low, high = window(every, scale.least, scale.floor)
    late = [at for curve in curves.values() for at in curve.values[len(curve.values) // 4 :]]
    late_low, late_high = window([scale.shown(value) for at in late for value in at] or every, scale.least, scale.floor)
    if not early or max(len(curve.x) for curve in curves.values()) < _LONG:
        return low, high
    return max(low, late_low - (late_high - late_low) / 3), high


_LONG = 8
"""Epochs from which on the first quarter may leave the picture."""


def _opacity(arms: int) -> float:
    """Of bands: many lie upon each other."""
    return 0.2 if arms <= 5 else 0.1


def _series(
    mark: Mark, curve: Curve, x: Axis, y: Axis, units: tuple[Scale, float], inks: Inks
) -> tuple[Element, Element, list[Element]]:
    """The band, the line and the last point of an arm. Where no seed has a finite score there is a gap."""
    scale, unit = units
    places = [(x.at(at / unit), one) for at, one in zip(curve.x, curve.spreads, strict=True)]
    runs = [list(run) for there, run in groupby(places, lambda place: math.isfinite(place[1].mean)) if there]

    def down(value: float) -> float:
        return y.at(scale.shown(value))

    bands = element("g", *(_band(mark, run, down, inks) for run in runs if any(one.seeds > 1 for _, one in run)))
    lines = element("g", *(line(mark, [(at, down(one.mean)) for at, one in run], inks) for run in runs if len(run) > 1))
    dots = [run[-1] for run in runs if len(run) == 1 or run is runs[-1]]
    seen = [(at, down(one.mean)) for at, one in dots]
    return bands, lines, [point(mark, at, height, inks) for at, height in seen if y.end <= height <= y.start]


def _band(mark: Mark, run: Places, down: Callable[[float], float], inks: Inks) -> Element:
    """The area between the ends of intervals; of a single place, an upright bar."""
    if len(run) == 1:
        at, one = run[0]
        run = [(at - _BAR, one), (at + _BAR, one)]
    upper = [f"{at:.2f},{down(one.high):.2f}" for at, one in run]
    lower = [f"{at:.2f},{down(one.low):.2f}" for at, one in reversed(run)]
    return element("polygon", points=" ".join(upper + lower), fill=mark.ink(inks))


_BAR = 5.0


def _about(curves: Mapping[str, Curve], scale: Scale) -> str:
    """The last means, in words."""
    ends = [f"{arm} {scale.score(curve.spreads[-1].mean)}" for arm, curve in curves.items()]
    return f"Means over seeds with 95 % intervals. At the right end: {', '.join(ends)}."
