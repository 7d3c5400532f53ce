"""Transposed convolutions, `nn.ConvTranspose2d` and its like: each input position adds a kernel to the output."""

import math
from typing import Any

from torch import nn
from torch.nn import functional as F

from aimgraph.runtime.layer_kinds.conv import Conv
from aimgraph.runtime.layer_kinds.kind import LayerKind, register_layer_kind


class ConvTranspose(Conv):
    """Weight [C, O / g, *K], applied at every position of the input."""

    in_axis = 0
    methods = ("forward",)
    arguments = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

    def places(self, layer: Any, grid: tuple[int, ...], output: tuple[int, ...]) -> int:
        """The positions of the input."""
        return math.prod(grid)

    read_class = LayerKind.read_class


register_layer_kind(ConvTranspose(nn.ConvTranspose1d, F.conv_transpose1d))
register_layer_kind(ConvTranspose(nn.ConvTranspose2d, F.conv_transpose2d))
register_layer_kind(ConvTranspose(nn.ConvTranspose3d, F.conv_transpose3d))
