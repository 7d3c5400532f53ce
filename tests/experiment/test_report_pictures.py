"""Pictures of reports: marks at the right places, round ticks, and colours that everybody tells apart."""

import itertools
import math
import re
from xml.etree.ElementTree import Element

import numpy as np
import pytest

from aimgraph.experiment.report.pictures.axes import Axis, log_ticks, log_window, round_ticks, window
from aimgraph.experiment.report.pictures.costs import over_kept, over_parameters
from aimgraph.experiment.report.pictures.curves import curves_by_epoch, curves_by_second, curves_by_strength
from aimgraph.experiment.report.pictures.forest import forest
from aimgraph.experiment.report.pictures.marks import marks_of
from aimgraph.experiment.report.pictures.probes import probe_bars
from aimgraph.experiment.report.pictures.svg import STILL
from aimgraph.experiment.results import Experiment
from aimgraph.planning.colours import DARK, DARK_PAPER, LIGHT
from aimgraph.web.svg import as_text, shortened, width_of
from tests.experiment.made_results import made_experiment, with_comparisons

MANY = ["base", *(f"an-arm-with-quite-a-long-name-{place}" for place in range(15))]


def pictures(made: Experiment) -> list[Element]:
    found = [
        curves_by_epoch(made, STILL), curves_by_second(made, STILL), curves_by_strength(made, STILL),
        forest(made, made.comparisons, STILL, "a", "test"),
        forest(made, made.at_equal_seconds, STILL, "b", "validation"),
        over_parameters(made, STILL), over_kept(made, STILL), *probe_bars(made, STILL),
    ]  # fmt: skip
    return [one for one in found if one is not None]


def odd() -> Experiment:
    """Scores that are no numbers, an arm that trains nothing, one that kept nothing that was measured."""
    made = made_experiment(metric="R2", epochs=5)
    made.units[0].validation[0] = -1e9
    made.units[1].validation[2] = math.nan
    for one in made.units:
        if one.unit.arm == "static":
            one.test, one.validation = math.nan, [math.nan] * 5
            one.probes = dict.fromkeys(one.probes, math.nan)
    made.arms["base"].trained = 0
    made.arms["update"].kept_bytes = None
    return with_comparisons(made)


CASES = {
    "plain": made_experiment,
    "many": lambda: made_experiment(MANY, epochs=200),
    "one epoch": lambda: made_experiment(("base", "static"), seeds=2, epochs=1),
    "one seed": lambda: made_experiment(("base", "static"), seeds=1),
    "equal": lambda: made_experiment(noise=0.0, gain=lambda place: 0.0),
    "odd": odd,
    "nothing": lambda: _without_units(),
}


def _without_units() -> Experiment:
    made = made_experiment(("base", "static"), seeds=2)
    made.units = []
    return with_comparisons(made)


@pytest.mark.parametrize("case", CASES)
def test_everything_is_a_number_and_inside(case: str) -> None:
    for one in pictures(CASES[case]()):
        width, height = (float(one.attrib[side]) for side in ("width", "height"))
        text = as_text(one)
        assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', text)
        for name, limit in (("x", width), ("cx", width), ("x1", width), ("x2", width), ("y", height), ("cy", height)):
            places = [float(part.attrib[name]) for part in one.iter() if name in part.attrib]
            assert all(-0.5 <= place <= limit + 0.5 for place in places), (name, one.attrib)
        assert len(one.findtext("title") or "") > 3
        assert len(one.findtext("desc") or "") > 3


def test_pictures_are_left_out_where_there_is_nothing_to_show() -> None:
    assert pictures(_without_units()) == []
    assert len(pictures(made_experiment())) == 10


def test_a_difference_is_marked_where_it_is() -> None:
    made = made_experiment(("base", "zero"), gain=lambda place: 0.02 * place)
    drawn = forest(made, made.comparisons, STILL, "a", "test")
    assert drawn is not None
    (one,) = made.comparisons
    ticks = {float((part.text or "").replace("\N{MINUS SIGN}", "-")): float(part.attrib["x"]) for part in _ticks(drawn)}
    (low, start), (high, end) = min(ticks.items()), max(ticks.items())
    (mark,) = list(drawn.iter("polygon"))
    corners = [float(pair.split(",")[0]) for pair in mark.attrib["points"].split()]
    at = (min(corners) + max(corners)) / 2
    assert low + (at - start) / (end - start) * (high - low) == pytest.approx(100 * one.mean, abs=0.05)


def _ticks(drawn: Element) -> list[Element]:
    return [part for part in drawn if part.tag == "text" and re.fullmatch(r"[\N{MINUS SIGN}\d.]+", part.text or "")]


def test_an_interval_that_dwarfs_others_gets_an_arrow() -> None:
    made = made_experiment()
    last = made.comparisons[-1]
    wide = [*made.comparisons[:-1], type(last)(**vars(last) | {"low": -3.0, "high": 3.0})]
    made.comparisons = wide
    drawn = forest(made, wide, STILL, "a", "test")
    assert drawn is not None
    rows = [part for part in drawn if part.tag == "g"]
    arrows = [[one for one in row.iter("polygon") if "stroke" not in one.attrib] for row in rows]
    assert [len(one) for one in arrows] == [0, 0, 0, 2]


def test_a_line_goes_through_the_means() -> None:
    made = made_experiment(("base", "static"), epochs=4)
    drawn = curves_by_epoch(made, STILL)
    assert drawn is not None
    line = next(part for part in drawn.iter("polyline") if part.attrib["stroke"] == LIGHT[0])
    heights = [float(pair.split(",")[1]) for pair in line.attrib["points"].split()]
    units = [one.validation for one in made.units if one.unit.arm == "base"]
    means = np.mean(units, axis=0)
    slope = np.polyfit(means, heights, 1)
    assert np.polyval(slope, means) == pytest.approx(heights, abs=0.02)
    assert slope[0] < 0


def test_a_gap_in_a_curve_is_a_gap() -> None:
    made = made_experiment(("base", "static"), seeds=2, epochs=7)
    for one in made.units:
        one.validation[3] = math.nan
    drawn = curves_by_epoch(made, STILL)
    assert drawn is not None
    lines = [part for part in drawn.iter("polyline") if part.attrib["stroke"] == LIGHT[0]]
    assert [len(part.attrib["points"].split()) for part in lines][:2] == [3, 3]


def test_names_fit_and_do_not_touch() -> None:
    for drawn in pictures(CASES["many"]()):
        lines: dict[str, list[tuple[float, float]]] = {}
        for part in drawn.iter("text"):
            if "transform" in part.attrib:
                continue
            wide, x = width_of(part.text or "", float(part.attrib["font-size"])), float(part.attrib["x"])
            left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[part.attrib.get("text-anchor", "start")]
            lines.setdefault(part.attrib["y"], []).append((left, left + wide))
        for places in lines.values():
            places.sort()
            assert places[0][0] >= -1
            assert places[-1][1] <= float(drawn.attrib["width"]) + 8
            assert all(before[1] <= after[0] + 1 for before, after in itertools.pairwise(places))


def test_an_arm_looks_the_same_everywhere_and_like_no_other() -> None:
    marks = marks_of(made_experiment(MANY))
    assert len(set(marks.values())) == len(MANY)
    assert marks["base"].colour == 0
    assert [one.colour for one in marks.values()].count(0) == 1
    other = marks_of(made_experiment(["first", "second"]))
    assert other["first"] == marks["base"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 4.9), (0.7611, 0.7689), (12, 98_765), (-1e-4, 2e-4)])
def test_ticks_are_round(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick.value <= high + 1e-9 for tick in ticks)
    step = ticks[1].value - ticks[0].value
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9)) in (1, 2, 5)
    labels = [float(tick.label.replace("\N{MINUS SIGN}", "-")) for tick in ticks]
    assert labels == pytest.approx([tick.value for tick in ticks], abs=1e-12)


def test_epochs_are_whole() -> None:
    assert [tick.label for tick in round_ticks(0, 1, whole=True)] == ["0", "1"]
    assert [tick.label for tick in round_ticks(0, 200, whole=True)] == ["0", "50", "100", "150", "200"]


@pytest.mark.parametrize(("low", "high"), [(900, 1100), (1e3, 1e9), (1, 30), (10_200_000, 10_900_000)])
def test_ticks_of_a_logarithmic_axis(low: float, high: float) -> None:
    start, end = log_window([low, high])
    ticks = log_ticks(start, end)
    assert 2 <= len(ticks) <= 6
    assert len({tick.label for tick in ticks}) == len(ticks)
    axis = Axis(start, end, 0, 100, ticks, "", log=True)
    assert all(-1e-6 <= axis.at(tick.value) <= 100 + 1e-6 for tick in ticks)


def test_windows() -> None:
    assert window([5, 5], 1) == pytest.approx((4.44, 5.56))
    low, high = window([-50.0, 0.5, 0.9], 0.01, -1.0)
    assert -1.2 < low < -1
    assert high > 0.9
    assert window([-50.0, -2.0], 0.01, -1.0)[0] < -50


def test_long_names_lose_their_middle() -> None:
    assert shortened("static", 100) == "static"
    short = shortened("a-very-long-name-indeed-17", 90)
    assert width_of(short) <= 90
    assert short.startswith("a-v")
    assert short.endswith("-17")


SIGHT = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""Of linear RGB. Source: G. Machado et al., "A physiologically-based model for simulation of color vision deficiency",
IEEE Transactions on Visualization and Computer Graphics 15, 2009, severity 1."""


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(colour: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB, white D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(colour, 0, 1) / (0.9505, 1, 1.089), 1e-4))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_differ_in_every_sight(colours: tuple[str, ...], sight: str) -> None:
    seen = [lab(np.array(SIGHT[sight]) @ linear(colour)) for colour in colours]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, "#ffffff"), (DARK, DARK_PAPER)], ids=["light", "dark"])
def test_colours_stand_out_from_the_paper(colours: tuple[str, ...], paper: str) -> None:
    for colour in colours:
        low, high = sorted(float(linear(one) @ (0.2126, 0.7152, 0.0722)) for one in (colour, paper))
        assert (high + 0.05) / (low + 0.05) >= 3
