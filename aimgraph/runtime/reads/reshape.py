"""Reshape and zero-pad: all values at once, k at each position."""

import math
from typing import Literal

from aimgraph.runtime.reads.view import ViewSpec, square_side
from aimgraph.runtime.specs import PARTS, ReadSpec


def reshape(spec: ReadSpec) -> ViewSpec:
    """The values in their order, k = max(1, ceil(N / P)) to a position, or as a centred square."""
    channels = read_channels(spec.size, spec.grid)
    return ViewSpec(read_style(spec.size, spec.grid), spec.size, spec.grid, channels)


def read_channels(size: int, grid: tuple[int, ...]) -> int:
    """`k = max(1, ceil(N / P))`: the channels that `size` values fill on `grid`."""
    return max(1, -(-size // math.prod(grid)))


def read_style(size: int, grid: tuple[int, ...]) -> Literal["reshape", "centred"]:
    """``centred`` where k = 1, the grid is 2-D and the square of side ceil(sqrt(N)) fits it."""
    fits = len(grid) == 2 and read_channels(size, grid) == 1 and square_side(size) <= min(grid)
    return "centred" if fits else "reshape"


PARTS["read"]["reshape"] = reshape
