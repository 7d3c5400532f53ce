"""Examples that are made by rules."""

from collections.abc import Callable

import torch
from torch import Generator

from aimgraph.experiment.images import Images

CELLS, CELL, SQUARE = 4, 4, 2
BRIGHT, NOISE = 4.0, 0.4  # the deviation of all pixels is then 0.6


def squares(count: int, generator: Generator) -> Images:
    """Images of 16 x 16 pixels; the label is the one of 4 x 4 cells that holds a bright 2 x 2 square.

    The square lies anywhere inside of its cell. Its pixels are 4, all others 0; noise from N(0, 0.4^2) is
    added to all pixels.
    """
    side = CELLS * CELL
    pixels = NOISE * torch.randn(count, 1, side, side, generator=generator)
    labels = torch.randint(CELLS**2, (count,), generator=generator)
    inside = torch.randint(CELL - SQUARE + 1, (2, count), generator=generator)
    rows, cols = (labels // CELLS) * CELL + inside[0], (labels % CELLS) * CELL + inside[1]
    each = torch.arange(count)
    for row in range(SQUARE):
        for col in range(SQUARE):
            pixels[each, 0, rows + row, cols + col] += BRIGHT
    return Images(pixels, labels)


MADE: dict[str, Callable[[int, Generator], Images]] = {"position": squares}
"""Name -> what makes a number of examples."""

STREAMS: frozenset[str] = frozenset()
"""Those whose examples come one after another: they are neither shuffled nor drawn."""
