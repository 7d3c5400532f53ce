"""What became of an arm's score when its trained memory was changed."""

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from aimgraph.experiment.report.formats import Scale, scale_of
from aimgraph.experiment.report.gathered import Spread, probe_gaps, spread, units_of
from aimgraph.experiment.report.pictures.axes import BELOW, Axis, below, round_ticks, window
from aimgraph.experiment.report.pictures.marks import Mark, marks_of
from aimgraph.experiment.report.pictures.svg import BOLD, WIDTH, Inks
from aimgraph.experiment.results import Experiment
from aimgraph.web.svg import FONT, SMALL, drawing, element, shortened, width_of, words

_TOP, _ROW, _RIGHT = 28.0, 22.0, 16.0


def probe_bars(experiment: Experiment, inks: Inks) -> list[Element]:
    """One picture an arm that was probed: differences from its plain score. All have the same axis."""
    gaps = {arm: found for arm in experiment.arms if (found := probe_gaps(experiment, arm))}
    gaps = {arm: found for arm, found in gaps.items() if any(one.seeds for one in found.values())}
    if not gaps:
        return []
    scale, marks = scale_of(experiment.metric), marks_of(experiment)
    low, high = window(_ends(gaps, scale), scale.least)
    names = [name for found in gaps.values() for name in found]
    left = min(max(width_of(name, FONT) for name in names), 0.42 * WIDTH) + 10
    return [
        _bars(experiment, arm, found, ((low, high), left), marks[arm], f"probes-{place}", inks)
        for place, (arm, found) in enumerate(gaps.items())
    ]


def _ends(gaps: Mapping[str, Mapping[str, Spread]], scale: Scale) -> list[float]:
    """Means, 0, and ends of intervals; one that is wider than those are apart is cut off."""
    there = [one for found in gaps.values() for one in found.values() if one.seeds]
    means = [0.0, *(scale.shown(one.mean) for one in there)]
    low, high, span = min(means), max(means), max(max(means) - min(means), scale.least)
    ends = [scale.shown(end) for one in there for end in (one.low, one.high)]
    return [*means, *(min(max(end, low - span), high + span) for end in ends)]


def _bars(
    experiment: Experiment,
    arm: str,
    gaps: dict[str, Spread],
    shape: tuple[tuple[float, float], float],
    mark: Mark,
    name: str,
    inks: Inks,
) -> Element:
    scale, ((low, high), left) = scale_of(experiment.metric), shape
    plain = spread([one.probes["plain"] for one in units_of(experiment, arm) if "plain" in one.probes])
    title = f"{arm}: {scale.score(plain.mean)} unchanged"
    unit = f", {scale.gap_unit}" if scale.gap_unit else ""
    x = Axis(low, high, left, WIDTH - _RIGHT, round_ticks(low, high, 5), f"change of validation {scale.name}{unit}")
    bottom = _TOP + _ROW * len(gaps) + 4
    back = [element("line", x1=x.at(t.value), x2=x.at(t.value), y1=_TOP, y2=bottom, stroke=inks.grid) for t in x.ticks]
    rows = [
        _row(probe, one, x, _TOP + _ROW * place, (scale, mark, inks)) for place, (probe, one) in enumerate(gaps.items())
    ]
    zero = element("line", x1=x.at(0), x2=x.at(0), y1=_TOP, y2=bottom, stroke=inks.text, stroke_width=1.2)
    rest = title.removeprefix(arm)
    short = shortened(arm, WIDTH - 4 - width_of(rest, BOLD), BOLD) + rest
    head = words(short, 2, 15, inks.text, FONT, font_weight="600")
    about = "; ".join(f"{probe}: {_told(one, scale)}" for probe, one in gaps.items())
    children = (*back, head, *rows, zero, *below(x, bottom, inks))
    return drawing(name, f"Probes of {title}", f"{about}.", (WIDTH, bottom + BELOW), *children)


def _told(one: Spread, scale: Scale) -> str:
    return f"{scale.gap(one.mean)} {scale.interval(one.low, one.high)}" if one.seeds else "not a number"


def _row(probe: str, one: Spread, x: Axis, top: float, look: tuple[Scale, Mark, Inks]) -> Element:
    scale, mark, inks = look
    y, ink = top + _ROW / 2, mark.ink(inks)
    label = words(shortened(probe, x.start - 8, FONT), x.start - 6, y + 4, inks.text, FONT, text_anchor="end")
    made = element("g", element("title", f"{probe}: {_told(one, scale)}"), label)
    if not one.seeds:
        made.append(words("not a number", x.start + 4, y + 4, inks.faint, SMALL))
        return made
    zero, mean = x.at(0), x.at(scale.shown(one.mean))
    low, high = (x.at(min(max(scale.shown(end), x.low), x.high)) for end in (one.low, one.high))
    bar = {"x": min(zero, mean), "y": y - 6, "width": abs(mean - zero), "height": 12.0}
    made.append(element("rect", **bar, fill=ink, opacity=0.75))
    made.append(element("line", x1=low, x2=high, y1=y, y2=y, stroke=inks.paper, stroke_width=4))
    made.append(element("line", x1=low, x2=high, y1=y, y2=y, stroke=inks.text, stroke_width=1.6))
    return made
