"""Test scores over what an arm costs."""

from collections.abc import Callable, Mapping
from xml.etree.ElementTree import Element

from aimgraph.experiment.report.formats import Scale, scale_of
from aimgraph.experiment.report.gathered import Spread, tested
from aimgraph.experiment.report.pictures.axes import (
    BELOW,
    Axis,
    frame,
    left_margin,
    log_ticks,
    log_window,
    round_ticks,
    window,
)
from aimgraph.experiment.report.pictures.marks import Mark, legend, marks_of, point
from aimgraph.experiment.report.pictures.svg import WIDTH, Inks
from aimgraph.experiment.results import ArmFacts, Experiment
from aimgraph.web.formats import brief
from aimgraph.web.svg import drawing, element, words

_TOP, _HEIGHT, _RIGHT, _NOTHING = 10.0, 210.0, 16.0, 34.0


def over_parameters(experiment: Experiment, inks: Inks) -> Element | None:
    """Over trained parameters, a logarithmic axis; None where no arm has a score."""
    return _over(experiment, lambda facts: facts.trained, ("trained parameters", ""), inks, "parameters")


def over_kept(experiment: Experiment, inks: Inks) -> Element | None:
    """Over the bytes that a forward keeps for the backward; None where they were not measured."""
    return _over(experiment, lambda facts: facts.kept_bytes, ("kept for the backward, bytes", "B"), inks, "kept")


def _over(
    experiment: Experiment,
    cost: Callable[[ArmFacts], int | None],
    told: tuple[str, str],
    inks: Inks,
    name: str,
) -> Element | None:
    scale, marks, (title, unit) = scale_of(experiment.metric), marks_of(experiment), told
    scores = {arm: tested(experiment, arm) for arm in experiment.arms}
    costs = {arm: found for arm, facts in experiment.arms.items() if (found := cost(facts)) is not None}
    costs = {arm: value for arm, value in costs.items() if scores[arm].seeds}
    if not costs:
        return None
    low, high = window(_ends(scores, costs, scale), scale.least, scale.floor)
    ticks = round_ticks(low, high)
    label = f"test {scale.name}" + (f", {scale.unit}" if scale.unit else "")
    y = Axis(low, high, _TOP + _HEIGHT, _TOP, ticks, label)
    x, nothing = _along(list(costs.values()), left_margin(ticks), title, unit)
    at = {arm: x.at(value) if value else nothing for arm, value in costs.items()}
    tips = {arm: f"{arm}: {brief(value, unit)}, {scale.score(scores[arm].mean)}" for arm, value in costs.items()}
    points = [_point(marks[arm], at[arm], y, scores[arm], (scale, inks, tips[arm])) for arm in costs]
    names, height = legend({arm: marks[arm] for arm in costs}, _TOP + _HEIGHT + BELOW, WIDTH, inks)
    about = ", ".join(f"{arm} {scale.score(scores[arm].mean)} at {brief(costs[arm], unit)}" for arm in costs)
    size = (WIDTH, _TOP + _HEIGHT + BELOW + height)
    heading = f"Test {scale.name} over {title}"
    zero = [] if all(costs.values()) else _zero(nothing, y.start, inks)
    back = frame(x, y, inks, left_margin(ticks))
    return drawing(name, heading, f"{about}.", size, back, *zero, *points, names)


def _ends(scores: Mapping[str, Spread], arms: Mapping[str, int], scale: Scale) -> list[float]:
    """Means and their intervals; one that is much wider than all means are apart is cut off."""
    means = [scale.shown(scores[arm].mean) for arm in arms]
    span = 3 * max(max(means) - min(means), scale.least)
    ends = [scale.shown(end) for arm in arms for end in (scores[arm].low, scores[arm].high)]
    return [*means, *(min(max(end, min(means) - span), max(means) + span) for end in ends)]


def _along(values: list[int], left: float, title: str, unit: str) -> tuple[Axis, float]:
    """The logarithmic axis, and the place of 0, which such an axis has not."""
    above = [value for value in values if value > 0]
    start = left + _NOTHING if len(above) < len(values) else left
    low, high = log_window(above or [1])
    ticks = log_ticks(low, high, unit) if above else []
    return Axis(low, high, start, WIDTH - _RIGHT, ticks, title, log=True), left + 12


def _zero(at: float, bottom: float, inks: Inks) -> list[Element]:
    """The mark of 0 beside a logarithmic axis."""
    return [
        element("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, stroke=inks.faint),
        element("line", x1=at - 8, x2=at + 8, y1=bottom, y2=bottom, stroke=inks.faint),
        words("0", at, bottom + 16, inks.faint, text_anchor="middle"),
    ]


def _point(mark: Mark, at: float, y: Axis, score: Spread, look: tuple[Scale, Inks, str]) -> Element:
    """A mean with its interval."""
    scale, inks, tip = look
    low, mean, high = (y.at(min(max(scale.shown(v), y.low), y.high)) for v in (score.low, score.mean, score.high))
    whisker = element("line", x1=at, x2=at, y1=low, y2=high, stroke=mark.ink(inks), stroke_width=1.6)
    return element("g", whisker, point(mark, at, mean, inks, tip=tip))
