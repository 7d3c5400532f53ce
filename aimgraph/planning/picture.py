"""A picture of a plan: which layers read, how much, and which value of the memory."""

import math
import os
from pathlib import Path
from typing import Any

from aimgraph.errors import ConfigError, ExportError
from aimgraph.planning.plan import Plan
from aimgraph.runtime.given import folder_of, given_path, written_to

_ROW_INCHES = 0.19


_SOURCE_COLOUR = "#4477aa"


_UPDATE_COLOURS = ("#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


_SKIPPED_COLOUR = "#dddddd"


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
    """Write a picture of `plan`, one row per layer in execution order.

    Left panel: the layer's grid, as positions P. Middle: added parameters, by the memory value
    that is read. Right: the memory's share k / (C / g + k) of what each group of the layer sees.

    Args:
        plan: Of `aimgraph.plan`.
        path: Where to write; the ending chooses the format (png, svg, pdf).

    Raises:
        ConfigError: This is no plan, or pictures of that ending can't be written.
        ExportError: matplotlib is not installed.
    """
    target = _check(plan, path)
    rows = _rows(plan)
    figure = blank(height=max(3.0, 1.6 + _ROW_INCHES * len(rows)))
    from matplotlib.patches import Patch

    grid_axes, cost_axes, share_axes = figure.subplots(1, 3, sharey=True, width_ratios=(1, 2, 1))
    positions, colours = range(len(rows)), [_colour(row.value) for row in rows]
    grid_axes.barh(positions, [row.positions for row in rows], color="#999999", log=True)
    grid_axes.set_xlabel("positions P of the grid (log)")
    cost_axes.barh(positions, [max(row.parameters, 0.5) for row in rows], color=colours, log=True)
    cost_axes.set_xlabel("added parameters (log)")
    share_axes.barh(positions, [100 * row.share for row in rows], color=colours)
    share_axes.set_xlabel("memory's share of the input, %")
    grid_axes.set_yticks(positions, [row.label for row in rows], fontsize=7)
    grid_axes.set_ylim(len(rows) - 0.4, -0.6)
    for position, row in enumerate(rows):
        if row.text:
            cost_axes.text(max(row.parameters, 0.5) * 1.1, position, row.text, va="center", fontsize=6)
    for axes in (grid_axes, cost_axes, share_axes):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    values = sorted({row.value for row in rows if row.value is not None})
    legend = [Patch(color=_colour(value), label="source" if value == 0 else f"update {value}") for value in values]
    if any(row.value is None for row in rows):
        legend.append(Patch(color=_colour(None), label="does not read"))
    figure.legend(handles=legend, loc="outside lower center", ncols=max(1, len(legend)), title="reads the memory as of")
    figure.suptitle(_title(plan), fontsize=11)
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


class _Row:
    """One bar: a read, or a layer that doesn't read."""

    def __init__(self, label: str, positions: int, parameters: int, share: float, value: int | None, text: str) -> None:
        self.label, self.positions, self.parameters = label, positions, parameters
        self.share, self.value, self.text = share, value, text


def _rows(plan: Plan) -> list[_Row]:
    sites = {site.path: site for site in plan.sites}
    order = {path: i for i, path in enumerate(sites)}
    reads = [(read, memory.name) for memory in plan.memories for read in memory.reads]
    rows = []
    for read, name in sorted(reads, key=lambda item: order[item[0].site]):
        site = sites[read.site]
        share = read.channels / (site.channels[0] // site.groups + read.channels)
        label = read.name if len(plan.memories) == 1 else f"{read.name} [{name}]"
        size, value = math.prod(read.grid), read.calls[0].value
        rows.append(_Row(label, size, read.parameters, share, value, f"k={read.channels}"))
    for item in plan.skipped:
        size = math.prod(sites[item.path].calls[0].grid) if item.path in sites else 1
        rows.append(_Row(item.path, size, 0, 0.0, None, item.reason[:60]))
    return rows


def _colour(value: int | None) -> str:
    """By the memory value that is read, if any is."""
    if value is None:
        return _SKIPPED_COLOUR
    return _SOURCE_COLOUR if value == 0 else _UPDATE_COLOURS[(value - 1) % len(_UPDATE_COLOURS)]


def _title(plan: Plan) -> str:
    shapes = ", ".join(f"{m.name}: {' x '.join(map(str, m.shape))} = {m.size:,} values" for m in plan.memories)
    ratio = plan.added_parameters / max(1, plan.base_parameters)
    return (
        f"{plan.model}: {plan.sites_read} of {plan.layers} layers read {shapes}\n"
        f"{plan.base_parameters:,} + {plan.added_parameters:,} parameters (+{ratio:.2%})"
    )
