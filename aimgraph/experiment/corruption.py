"""Streams of corrupted images: what a sensor, the weather or a lamp does to one image after another.

    coherent: runs of 64 images with one corruption of one strength, then another; mixed: another one for each image.

An image has the same chance of each corruption in both, so that they differ in what the images before tell alone.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from aimgraph.experiment.images import Images

RUN = 64
"""Images in a row with the same corruption, in a coherent stream."""

WEAKEST = 0.5
"""Strengths are between this and 1."""


def brighter(pixels: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """An offset of up to 0.8."""
    return pixels + 0.8 * strength


def darker(pixels: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """An offset of up to -0.8."""
    return pixels - 0.8 * strength


def paler(pixels: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Down to a fifth of the contrast."""
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return mean + (pixels - mean) * (1 - 0.8 * strength)


def noisier(pixels: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Noise of a standard deviation of up to 0.7."""
    return pixels + 0.7 * strength * noise


def blurred(pixels: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Mixed with the means over 3 x 3 pixels."""
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    return pixels + strength * (F.avg_pool2d(padded, 3, stride=1) - pixels)


KINDS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (brighter, darker, paler, noisier, blurred)
"""Each takes pixels, [B, C, H, W], strengths, [B, 1, 1, 1], and noise like the pixels."""


def corrupted(images: Images, coherent: bool, generator: Generator) -> Images:
    """A stream of images, each corrupted.

    Args:
        images: In the order of the stream.
        coherent: Whether the corruption stays for `RUN` images.
        generator: Draws everything.
    """
    count, length = len(images), RUN if coherent else 1
    runs = -(-count // length)
    kinds = torch.randint(len(KINDS), (runs,), generator=generator).repeat_interleave(length)[:count]
    drawn = WEAKEST + (1 - WEAKEST) * torch.rand(runs, generator=generator)
    strengths = drawn.repeat_interleave(length)[:count, None, None, None]
    noise = torch.randn(images.pixels.shape, generator=generator)
    pixels = images.pixels.clone()
    for place, corrupt in enumerate(KINDS):
        here = kinds == place
        pixels[here] = corrupt(images.pixels[here], strengths[here], noise[here])
    return Images(pixels, images.labels)
