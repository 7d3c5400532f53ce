"""Examples that are made by rules, so that it is known beforehand what can be learned from them."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

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
    _add_squares(pixels, rows, cols, SQUARE, torch.full((count,), BRIGHT))
    return Images(pixels, labels)


FIELD, MARKER, STRENGTH = 28, 3, 3.0


def switched(count: int, generator: Generator) -> Images:
    """Images of 28 x 28 pixels, each 1 or -1; the labels, [count, 28, 28], are the image or its negative, as 0 and 1.

    A 3 x 3 marker that lies anywhere inside says which one: its pixels are 3 higher where the image is wanted, and 3
    lower where the negative is. Half of the markers are of either sign.
    """
    image = torch.randint(2, (count, 1, FIELD, FIELD), generator=generator) * 2.0 - 1
    signs = torch.randperm(count, generator=generator) % 2 * 2.0 - 1
    labels = (image[:, 0] * signs[:, None, None] > 0).long()
    rows, cols = torch.randint(FIELD - MARKER + 1, (2, count), generator=generator)
    _add_squares(image, rows, cols, MARKER, STRENGTH * signs)
    return Images(image, labels)


def _add_squares(pixels: Tensor, rows: Tensor, cols: Tensor, side: int, values: Tensor) -> None:
    """Add a number to a square of each image, [B, 1, H, W], in place; `rows` and `cols` are of its upper left pixel."""
    each = torch.arange(len(pixels))
    for row in range(side):
        for col in range(side):
            pixels[each, 0, rows + row, cols + col] += values


DRIFT_SIDE = 8
BRIGHTNESS, OFFSET, TEXTURE = 0.5, 1.0, 0.3
PERIOD, WAVES = 512, 2


def drifting(count: int, generator: Generator) -> Images:
    """A stream of images of 8 x 8 pixels behind an offset that changes slowly; the labels, [count, 1], are brightness.

    The brightness of an image, the mean of its pixels, is from N(0, 0.5^2). Each image has a texture of its own, whose
    mean is zero, and one offset is added to all of its pixels. An image alone does not tell offset from brightness. The
    images around it do: the offset is the sum of two sine waves over the place in the stream, with periods of 512 and
    256 images and random phases. Its variance over 512 images is 1, four times that of the brightness, so that a linear
    function of one image has an R2 of 0.2. Any function of one image has 0.4 at most.
    """
    brightness = BRIGHTNESS * torch.randn(count, generator=generator)
    texture = TEXTURE * torch.randn(count, 1, DRIFT_SIDE, DRIFT_SIDE, generator=generator)
    texture -= texture.mean((1, 2, 3), keepdim=True)
    seen = brightness + _slow_waves(count, generator)
    return Images(seen[:, None, None, None] + texture, brightness[:, None])


def _slow_waves(count: int, generator: Generator) -> Tensor:
    """The offset, [count]."""
    phases = torch.rand(WAVES, 1, generator=generator)
    cycles = torch.arange(count) / PERIOD * torch.arange(1, WAVES + 1)[:, None] + phases
    return torch.as_tensor(OFFSET * math.sqrt(2 / WAVES) * (2 * math.pi * cycles).sin().sum(0))


def mixed(count: int, generator: Generator) -> Images:
    """The images of `drifting`, with their labels, in a random order: the images before one say nothing about it."""
    stream = drifting(count, generator)
    return stream.at(torch.randperm(count, generator=generator))


MADE: dict[str, Callable[[int, Generator], Images]] = {
    "position": squares,
    "switch": switched,
    "drift": drifting,
    "drift-mixed": mixed,
}
"""Name -> what makes a number of examples."""

STREAMS: frozenset[str] = frozenset({"drift", "drift-mixed"})
"""Those whose examples come one after another: they are neither shuffled nor drawn."""
