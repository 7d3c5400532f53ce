"""Convolutions that are faster on one sample. They need torch alone: `aimgraph.to_source` copies them as they stand."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pointwise:
    """A convolution of one tap over one group, without padding and bias: of one sample a product of two matrices.

    That takes less time than a convolution does. And oneDNN reads beyond the end of channels-last maps of few channels
    in the backward pass of a strided one (torch 2.13), and memories are such maps.
    """

    stride: tuple[int, ...]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        steps: Any = (..., *(slice(None, None, stride) for stride in self.stride))
        values, rank = input[steps] if any(stride > 1 for stride in self.stride) else input, len(self.stride)
        if values.shape[0] != 1 or values.dim() != rank + 2:
            return (F.conv1d, F.conv2d, F.conv3d)[rank - 1](values, weight, bias)
        if values.stride(1) == 1 and values.shape[2:].numel() > 1:  # channels-last
            return F.linear(values.movedim(1, -1), weight.flatten(1)).movedim(-1, 1)
        return torch.mm(weight.flatten(1), values[0].flatten(1)).reshape(1, -1, *values.shape[2:])


class PointwiseConv1d(Pointwise, nn.Conv1d):
    """`nn.Conv1d` with a kernel of 1 and no padding."""


class PointwiseConv2d(Pointwise, nn.Conv2d):
    """`nn.Conv2d` with a kernel of 1 and no padding."""


class PointwiseConv3d(Pointwise, nn.Conv3d):
    """`nn.Conv3d` with a kernel of 1 and no padding."""


class FewPlacesConv2d(nn.Conv2d):
    """`nn.Conv2d` over one group, without bias: a product of two matrices where it has as many taps as places to give.

    Convolutions are made for many places. With 7 x 7 taps over 7 x 7 places, as in the last stage of ConvNeXt, their
    backward pass takes several times as long as that of the product of the weight and the input's windows.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.gives_few(input):
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        rows, cols = self._places(input)
        windows = F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]
        if input.stride(1) == 1:  # channels-last; windows are [1, k * taps, places]
            return F.linear(windows[0].t(), weight.flatten(1)).view(1, rows, cols, -1).permute(0, 3, 1, 2)
        return torch.mm(weight.flatten(1), windows[0]).view(1, -1, rows, cols)

    def gives_few(self, input: Tensor) -> bool:
        """Whether there are at most as many places to give as taps, and more than one."""
        rows, cols = self._places(input)
        return 1 < rows * cols <= self.kernel_size[0] * self.kernel_size[1]

    def _places(self, input: Tensor) -> tuple[int, int]:
        """Rows and columns of the output for one sample; none where that is not what is asked for."""
        single = input.dim() == 4 and input.shape[0] == 1
        if not single or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return 0, 0
        rows, cols = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                input.shape[2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        return rows, cols
