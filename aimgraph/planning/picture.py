"""A still picture of a plan: the network from top to bottom, its memories beside it, and what reads and writes them."""

import os
from pathlib import Path
from typing import Any

from aimgraph.errors import ConfigError, ExportError
from aimgraph.planning.colours import LIGHT
from aimgraph.planning.gutter import Stroke
from aimgraph.planning.lanes import HEAD, HEIGHT, Lanes, lanes_of, ribbon_points
from aimgraph.planning.plan import Plan
from aimgraph.planning.rows import Row, memory_shape, rows_of
from aimgraph.runtime.given import folder_of, given_path, written_to

MOST_ROWS = 160
"""Of a picture in which every module is open; larger networks are folded as the page folds them at first."""

_WIDTH, _LABEL, _TOP, _BELOW = 800.0, 290.0, 56.0, 34.0
"""In pixels: of the picture, of what stands left of the facts, and of title and legend."""

_INK, _FAINT, _EDGE, _PAPER = "#1b1f24", "#57606a", "#8b949e", "#ffffff"


def blank(height: float) -> Any:
    """An empty `matplotlib.figure.Figure`, as wide as all pictures are.

    Args:
        height: In inches.

    Raises:
        ExportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExportError("drawing needs matplotlib: pip install 'aimgraph[draw]'") from error
    return Figure(figsize=(13, height), layout="constrained")


def draw(plan: Plan, path: str | os.PathLike[str]) -> Path:
    """Write a picture of `plan`, one row for each layer and module, in execution order.

    On the left the graph of the network; on the right the memories, each as a lane. An arrow to a row is what it reads,
    in the colour of the value that is read; its thickness is the square root of the parameters of the read weights.

    Args:
        plan: Of `aimgraph.plan`.
        path: Where to write; the ending chooses the format (png, svg, pdf).

    Raises:
        ConfigError: This is no plan, or pictures of that ending can't be written.
        ExportError: matplotlib is not installed.
    """
    target = _check(plan, path)
    rows, lanes = _shown(plan), lanes_of(plan)
    height = _TOP + HEAD + HEIGHT * len(rows) + _BELOW
    figure = blank(height=13 * height / _WIDTH)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    still = _Still(axes, plan, lanes)
    still.title()
    for place, (row, opened) in enumerate(rows):
        still.row(row, _TOP + HEAD + HEIGHT * place, opened=opened, last=place == len(rows) - 1)
    still.legend(height - _BELOW / 2)
    return _saved(figure, target)


def _saved(figure: Any, target: Path) -> Path:
    with written_to(target, ConfigError):
        folder_of(target, ConfigError)
        figure.savefig(target, dpi=130)
    return target


def _check(plan: Any, path: str | os.PathLike[str]) -> Path:
    if not isinstance(plan, Plan):
        raise ConfigError(
            f"draw takes a plan, and this is a {type(plan).__name__}: give aimgraph.plan(model, example_inputs), or "
            "aimgraph.plan(aim) of a transformed model"
        )
    made = given_path(path, "the picture")
    check_ending(made)
    return made


def check_ending(path: str | os.PathLike[str]) -> None:
    """See that pictures of this ending can be written.

    Raises:
        ConfigError: They can't.
        ExportError: matplotlib is not installed.
    """
    endings = blank(1).canvas.get_supported_filetypes()
    if (ending := Path(path).suffix.removeprefix(".").lower()) not in endings:
        raise ConfigError(f"{path}: {ending!r} is no ending of a picture that can be written: use png, svg or pdf")


def _shown(plan: Plan) -> list[tuple[Row, bool]]:
    """The rows of a picture, each with whether it is open."""
    rows = rows_of(plan)
    if len(rows) <= MOST_ROWS:
        return [(row, row.parts) for row in rows]
    seen = {"": True}
    for row in rows:
        seen[row.key] = seen[row.parent] and row.open
    return [(row, row.open) for row in rows if seen[row.parent]]


class _Still:
    """Draws rows onto axes whose unit is a pixel."""

    def __init__(self, axes: Any, plan: Plan, lanes: Lanes) -> None:
        self.axes, self.plan, self.lanes = axes, plan, lanes
        self.left = _WIDTH - lanes.width - 12
        self.reasons = plan.left
        self.reads = {read.site: read for _, read in reversed(plan.reads)}

    def title(self) -> None:
        plan = self.plan
        shapes = ", ".join(f"{memory.name}: {memory_shape(memory)}" for memory in plan.memories)
        ratio = plan.added_parameters / max(1, plan.base_parameters)
        self._text(12, 18, f"{plan.model}: {plan.sites_read} of {plan.layers} layers read {shapes}", 10, weight="bold")
        told = f"{plan.base_parameters:,} + {plan.added_parameters:,} parameters (+{ratio:.2%})"
        self._text(12, 38, told, 8.5, color=_FAINT)
        top = _TOP + 14
        for lane, carried in enumerate(self.lanes.carried):
            x, ink = self.left + self.lanes.x(lane), _ink(self.lanes.colour(lane, 0))
            self._line(((x, top), (x, _TOP + HEAD)), ink, 7)
            if carried:
                loop = self.left + self.lanes.loop(lane)
                self._line(((loop, _TOP + HEAD), (loop, _TOP + 2), (x + 2, top - 20), (x, top - 6)), _EDGE, 1.2, "--")
            self._dot(x, top, 60, ink)

    def row(self, row: Row, top: float, *, opened: bool, last: bool) -> None:
        """One row, whose upper edge is at `top`."""
        middle = top + HEIGHT / 2
        for stroke in (*row.lines.always, *(row.lines.opened if opened else ())):
            self._line(tuple((x + 12, top + HEIGHT * y) for x, y in stroke), _EDGE, 1.1)
        self._lanes(row, top, opened=opened, last=last)
        x = row.lines.x + 12
        marker = {"group": "s", "opaque": "s", "update": "D", "input": "v", "output": "v"}.get(row.kind, "o")
        size = 12.0 if row.kind == "join" else 36.0
        self._dot(x, middle, size, self._fill(row), marker)
        self._text(x + 12, middle, row.label, 8, weight="bold" if row.layers else "normal")
        offset = 12 + 7.2 * len(row.label)
        self._text(x + offset + 10, middle, row.name if row.kind != "join" else "", 7, color=_FAINT)
        self._text(max(_LABEL, x + offset + 90), middle, self._fact(row), 7, color=_FAINT)
        if row.ribbons and not opened:
            total = sum(ribbon.weight for ribbon in row.ribbons)
            self._text(self.left - 4, middle, f"{total:,.0f}", 7.5, ha="right")

    def _fact(self, row: Row) -> str:
        if row.kind == "update":
            return f"features of {row.path}"
        if row.kind != "layer":
            return f"{len(row.layers)} layers" if row.layers else ""
        read = self.reads.get(row.layers[0])
        if read is None:
            return self.reasons.get(row.layers[0], "")[:70]
        return f"k = {read.channels} on {' x '.join(map(str, read.grid))}" if read.grid else f"k = {read.channels}"

    def _fill(self, row: Row) -> str:
        if row.update is not None:
            return _ink(self.lanes.colour(*row.update))
        if row.ribbons:
            return _ink(self.lanes.colour(row.ribbons[0].lane, row.ribbons[0].value))
        return _EDGE if row.kind == "join" else _PAPER

    def _lanes(self, row: Row, top: float, *, opened: bool, last: bool) -> None:
        middle, bottom = top + HEIGHT / 2, top + HEIGHT
        for lane, (before, after) in enumerate(row.values):
            x, ends = self.left + self.lanes.x(lane), before if opened else after
            self._line(((x, top), (x, middle)), _ink(self.lanes.colour(lane, before)), 7)
            self._line(((x, middle), (x, bottom)), _ink(self.lanes.colour(lane, ends)), 7)
            if self.lanes.carried[lane]:
                loop = self.left + self.lanes.loop(lane)
                way = (
                    ((x, bottom), (x, bottom + 10), (loop, bottom + 10), (loop, top))
                    if last
                    else ((loop, top), (loop, bottom))
                )
                self._line(way, _EDGE, 1.2, "--")
        for place, ribbon in enumerate(() if opened else row.ribbons):
            points = ribbon_points(self.lanes, ribbon, place, len(row.ribbons))
            ink = _ink(self.lanes.colour(ribbon.lane, ribbon.value))
            self.axes.fill([self.left + x for x, _ in points], [top + y for _, y in points], color=ink, linewidth=0)
        if row.update is not None:
            x, ink = self.left + self.lanes.x(row.update[0]), _ink(self.lanes.colour(*row.update))
            style = {"arrowstyle": "-|>", "color": ink, "shrinkA": 0, "shrinkB": 3}
            self.axes.annotate("", (x, middle), (self.left + 4, middle), arrowprops=style)
            self._dot(x, middle, 40, ink)

    def legend(self, middle: float) -> None:
        """Which colour is which value."""
        x = 16.0
        for lane, memory in enumerate(self.plan.memories):
            for value in range(1 + len(memory.updates)):
                text = f"update {value}" if value else f"{memory.name}: source"
                self._dot(x, middle, 36, _ink(self.lanes.colour(lane, value)))
                self._text(x + 9, middle, text, 7.5)
                x += 34 + 6.2 * len(text)

    def _text(self, x: float, y: float, text: str, size: float, **look: Any) -> None:
        self.axes.text(x, y, text, fontsize=size, va="center", parse_math=False, **({"color": _INK} | look))

    def _dot(self, x: float, y: float, size: float, fill: str, marker: str = "o") -> None:
        self.axes.scatter([x], [y], s=size, c=fill, marker=marker, edgecolors=_INK, linewidths=0.8, zorder=3)

    def _line(self, points: Stroke, ink: str, width: float, style: str = "-") -> None:
        """A straight line, or a cubic curve."""
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Line

        codes = [Line.MOVETO, Line.LINETO] if len(points) == 2 else [Line.MOVETO, *[Line.CURVE4] * 3]
        look = {"edgecolor": ink, "linewidth": width, "linestyle": style, "capstyle": "butt", "facecolor": "none"}
        self.axes.add_patch(PathPatch(Line(list(points), codes), **look))


def _ink(colour: int) -> str:
    return LIGHT[1:][colour]
