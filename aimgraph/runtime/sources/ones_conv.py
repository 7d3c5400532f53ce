"""A layer fed with ones."""

import torch
from torch import Tensor, nn

from aimgraph.runtime.specs import PARTS, SourceSpec


class OnesConvSource(nn.Module):
    """The article's source: a linear layer fed with ones, so that its weights are the memory.

    For a shape (rows, cols, channels) a 1x1 convolution with as many input as output channels,
    which yields the same `channels` values at every position; for (N,) a dense layer with one
    input, so that a weight plus a bias is one value.

    Args:
        spec: Of the memory.
    """

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__()
        self.shape = spec.shape
        size = spec.shape[-1]
        self.layer: nn.Conv2d | nn.Linear = nn.Conv2d(size, size, 1) if len(spec.shape) == 3 else nn.Linear(1, size)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.layer.reset_parameters()

    def zero_(self) -> None:
        """Make all values zero: weights and biases."""
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.zero_()

    def forward(self) -> Tensor:
        """The values in (row, column, channel) order, [1, N]."""
        weight = self.layer.weight
        if len(self.shape) == 1:
            return torch.as_tensor(self.layer(weight.new_ones(1, 1)))
        rows, cols, channels = self.shape
        map_ = self.layer(weight.new_ones(1, channels, rows, cols))
        return torch.as_tensor(map_).permute(0, 2, 3, 1).reshape(1, -1)


PARTS["source"]["ones_conv"] = OnesConvSource
