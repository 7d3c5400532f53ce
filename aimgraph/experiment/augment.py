"""Training images changed at random, a whole batch at a time."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from aimgraph.errors import ConfigError
from aimgraph.experiment.images import Images, of_pixels
from aimgraph.experiment.recipe import Augmentation


def augmented(images: Images, how: Augmentation, generator: Generator) -> Images:
    """Images that are mirrored, turned, moved and given another contrast, each in its own way.

    Places that come from outside of an image show its reflection: `d c b a | a b c d | d c b a`. With zeros there, a
    network would see how far each image was turned and moved, and statistics of pixels would change.

    Args:
        images: [B, C, H, W].
        how: The same object is returned where this says nothing.
        generator: All that is random is drawn from it.

    Raises:
        ConfigError: Images are to be mirrored, turned or moved, and have a label for each pixel, [B, H, W].
    """
    pixels, moves = images.pixels, bool(how.rotation or how.translation)
    if (how.flip or moves) and of_pixels(images.labels):
        raise ConfigError(
            f"augmentation: flip, rotation and translation would leave the labels, {list(images.labels.shape)}, which "
            "are for pixels, where they are: set contrast alone"
        )
    if how.flip:
        mirrored = _draw(pixels, generator, 1) < 1 / 2
        pixels = torch.where(mirrored[:, :, None, None], pixels.flip(-1), pixels)
    if moves:
        pixels = _moved(pixels, how, generator)
    if how.contrast:
        factor = 1 + how.contrast * (2 * _draw(pixels, generator, 1) - 1)
        mean = pixels.mean((2, 3), keepdim=True)
        pixels = mean + factor[:, :, None, None] * (pixels - mean)
    return images if pixels is images.pixels else Images(pixels, images.labels)


def _draw(pixels: Tensor, generator: Generator, count: int) -> Tensor:
    """Numbers for each image from U(0, 1), [B, count]."""
    drawn = torch.rand(len(pixels), count, generator=generator, device=generator.device)
    return drawn.to(pixels)


def _moved(pixels: Tensor, how: Augmentation, generator: Generator) -> Tensor:
    """Images that are turned about their centre, then moved."""
    height, width = pixels.shape[2:]
    turn, right, down = (2 * _draw(pixels, generator, 3) - 1).unbind(1)
    sin, cos = (call(2 * math.pi * how.rotation * turn) for call in (torch.sin, torch.cos))
    # In the coordinates of affine_grid both sides are 2 long. Images that are no squares are turned in pixels.
    side = width / height
    turned = torch.stack([torch.stack([cos, sin / side]), torch.stack([-sin * side, cos])]).permute(2, 0, 1)
    moved = 2 * how.translation * torch.stack([right, down], 1)[..., None]
    grid = F.affine_grid(torch.cat([turned, -turned @ moved], 2), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
