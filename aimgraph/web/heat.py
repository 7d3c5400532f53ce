"""Values of a memory as a map of colours: a small square grid for each channel.

Colours are classes, so that the page's light and dark modes can give them other inks: ``h0`` is the most negative
value, ``h5`` is zero and ``h10`` the largest one. All maps of one memory have the same scale.
"""

import math
from xml.etree.ElementTree import Element

import torch
from torch import Tensor

from aimgraph.distance import real_numbers
from aimgraph.web.subject import Held
from aimgraph.web.svg import element

STEPS = 5
"""Colours on each side of zero."""

MOST_CELLS, MOST_MAPS, LONGEST_SIDE = 12_000, 64, 64
"""Of all maps together; maps; and cells of a side, beyond which means of blocks are shown."""


def heat_maps(held: Held) -> list[Element]:
    """Pictures of the channels of a memory, as many as there is room for; a memory [N] is one strip, wrapped."""
    values = real_numbers(held.values).flatten()[: math.prod(held.shape)].double()
    values = values.where(values.isfinite(), torch.zeros_like(values))
    maps = _maps(values, held.shape)
    scale = float(maps.abs().max()) or 1.0
    room = max(1, min(MOST_MAPS, MOST_CELLS // maps[0].numel()))
    return [_map(one, scale, number, held) for number, one in enumerate(maps[:room])]


def extent(held: Held) -> tuple[float, float, float]:
    """Smallest and largest value, and the root mean square, of the values that are finite."""
    values = real_numbers(held.values).double()
    values = values[values.isfinite()]
    if not values.numel():
        return 0.0, 0.0, 0.0
    return float(values.min()), float(values.max()), float(values.square().mean().sqrt())


def _maps(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[channels, rows, cols], no side longer than `LONGEST_SIDE`."""
    if len(shape) == 3:
        maps = values.reshape(shape).permute(2, 0, 1)
        maps = maps.transpose(1, 2) if shape[1] == 1 else maps  # one column, as of tokens, is a strip
    else:
        side = min(32, math.ceil(math.sqrt(len(values))))
        rows = math.ceil(len(values) / side)
        padded = torch.full((rows * side,), math.nan, dtype=values.dtype)
        padded[: len(values)] = values
        maps = padded.reshape(1, rows, side)
    rows, columns = maps.shape[1:]
    if max(rows, columns) <= LONGEST_SIDE or maps.isnan().any():
        return maps[:, :LONGEST_SIDE].nan_to_num(nan=0.0) if len(shape) < 3 else maps
    small = (min(rows, LONGEST_SIDE), min(columns, LONGEST_SIDE))
    return torch.nn.functional.adaptive_avg_pool2d(maps, small)


def _map(values: Tensor, scale: float, number: int, held: Held) -> Element:
    rows, columns = values.shape
    levels = (values / scale * STEPS).round().clamp(-STEPS, STEPS).int() + STEPS
    paths = []
    for level in sorted(set(levels.flatten().tolist())):
        cells = (levels == level).nonzero().tolist()
        drawn = "".join(f"M{x} {y}{_run(length)}" for y, x, length in _runs(cells))
        paths.append(element("path", d=drawn, class_=f"h{level}"))
    low, high = float(values.min()), float(values.max())
    what = f"channel {number}" if len(held.shape) == 3 else "all values"
    title = element("title", f"{what}: {low:.3g} to {high:.3g}")
    made = element(
        "svg",
        title,
        *paths,
        viewBox=f"0 0 {columns} {rows}",
        class_="heat",
        role="img",
        preserveAspectRatio="xMinYMin",
    )
    made.set("aria-label", f"{held.title}, {what}, from {low:.3g} to {high:.3g}")
    made.set("shape-rendering", "crispEdges")
    return made


def _runs(cells: list[list[int]]) -> list[tuple[int, int, int]]:
    """Cells that stand next to each other in a row, as (row, column, length)."""
    runs: list[tuple[int, int, int]] = []
    for y, x in cells:
        if runs and runs[-1][0] == y and runs[-1][1] + runs[-1][2] == x:
            runs[-1] = (y, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((y, x, 1))
    return runs


def _run(length: int) -> str:
    return f"h{length}v1h-{length}z"
