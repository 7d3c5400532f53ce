"""Images in another size."""

from torch import Tensor
from torch.nn import functional as F

from aimgraph.errors import ConfigError
from aimgraph.experiment.images import Images, of_pixels


def resized(images: Images, side: int) -> Images:
    """Images of `side` pixels a side; those of one channel get three that are alike.

    The shorter side is resampled to `side`, bilinear and antialiased, and what is beyond `side` of the longer one is
    cut off at both ends, as `aimgraph.experiment.pictures.decode` does it.

    Args:
        images: [B, C, H, W].
        side: Pixels.

    Raises:
        ConfigError: There is a label for each pixel.
    """
    if of_pixels(images.labels):
        raise ConfigError(f"data.side={side}: labels, {list(images.labels.shape)}, are for pixels: leave `side` out")
    height, width = images.pixels.shape[2:]
    large = [max(side, round(one * side / min(height, width))) for one in (height, width)]
    pixels: Tensor = images.pixels
    if large != [height, width]:
        pixels = F.interpolate(pixels, size=large, mode="bilinear", align_corners=False, antialias=True)
    top, left = ((one - side) // 2 for one in large)
    pixels = pixels[:, :, top : top + side, left : left + side]
    return Images(pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels, images.labels)
