"""Convolutions, `nn.Conv2d` and its like, and the faster layers that read in their place."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.layer_kinds.kind import LayerKind, register_layer_kind
from aimgraph.torch_private import ConvNd, is_captured


class Conv(LayerKind):
    """Weight [O, C / g, *K], applied at every position of the output."""

    methods: tuple[str, ...] = ("forward", "_conv_forward")
    arguments: tuple[str, ...] = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

    def channels(self, layer: Any) -> tuple[int, int]:
        """Its channels, over all groups."""
        return layer.in_channels, layer.out_channels

    def set_inputs(self, layer: Any, channels: int, groups: int) -> None:
        """Note other input channels and groups."""
        layer.in_channels, layer.groups = channels, groups

    def groups(self, layer: Any) -> int:
        """The number of groups."""
        return int(layer.groups)

    def kernel(self, layer: Any) -> tuple[int, ...]:
        """The size of the kernel."""
        return tuple(layer.kernel_size)

    def places(self, layer: Any, grid: tuple[int, ...], output: tuple[int, ...]) -> int:
        """The positions of the output."""
        return math.prod(output[len(output) - len(layer.kernel_size) :])

    def probe(self, layer: Any) -> tuple[int, ...]:
        """An input that is larger than the kernel."""
        reach = max(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return 2, layer.in_channels, *[max(16, 2 * reach)] * len(layer.kernel_size)

    def read_class(self, layer: Any, *, raw: bool) -> type[nn.Module]:
        """A class that is faster on one sample, where there is one."""
        kind = super().read_class(layer, raw=raw)
        if all(size == 1 for size in layer.kernel_size) and (layer.padding == "valid" or not any(layer.padding)):
            return POINTWISE.get(kind, kind)
        return FewPlacesConv2d if kind is nn.Conv2d else kind

    def stand_in(self, weight: tuple[int, ...], groups: int) -> nn.Module:
        """A convolution without values."""
        return self.layer(*self.sizes(weight, groups), weight[2:], groups=groups, bias=False, device="meta")


class _Pointwise(ConvNd):
    """A convolution of one tap over one group, without padding and bias: a product of two matrices.

    For one sample that takes less time than a convolution does. And oneDNN reads beyond the end of channels-last maps
    of few channels in the backward pass of a strided one (torch 2.13), and memories are such maps.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        steps: Any = (..., *(slice(None, None, stride) for stride in self.stride))
        values, rank = input[steps] if any(stride > 1 for stride in self.stride) else input, len(self.stride)
        if values.shape[0] != 1 or values.dim() != rank + 2:
            return (F.conv1d, F.conv2d, F.conv3d)[rank - 1](values, weight, bias)
        if values.stride(1) == 1 and values.shape[2:].numel() > 1:  # channels-last
            return F.linear(values.movedim(1, -1), weight.flatten(1)).movedim(-1, 1)
        return torch.mm(weight.flatten(1), values[0].flatten(1)).reshape(1, -1, *values.shape[2:])


class PointwiseConv1d(_Pointwise, nn.Conv1d):
    """`nn.Conv1d` with a kernel of 1 and no padding."""


class PointwiseConv2d(_Pointwise, nn.Conv2d):
    """`nn.Conv2d` with a kernel of 1 and no padding."""


class PointwiseConv3d(_Pointwise, nn.Conv3d):
    """`nn.Conv3d` with a kernel of 1 and no padding."""


class FewPlacesConv2d(nn.Conv2d):
    """`nn.Conv2d` over one group, without bias: a product of two matrices where it has as many taps as places to give.

    Convolutions are made for many places. With 7 x 7 taps over 7 x 7 places, as in the last stage of ConvNeXt, their
    backward pass takes several times as long as that of the product of the weight and the input's windows.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, cols = self._places(input)
        if not 1 < rows * cols <= self.kernel_size[0] * self.kernel_size[1]:
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        windows = F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]
        if input.stride(1) == 1:  # channels-last; windows are [1, k * taps, places]
            return F.linear(windows[0].t(), weight.flatten(1)).view(1, rows, cols, -1).permute(0, 3, 1, 2)
        return torch.mm(weight.flatten(1), windows[0]).view(1, -1, rows, cols)

    def _places(self, input: Tensor) -> tuple[int, int]:
        """Rows and columns of the output for one sample; none where that is not what is asked for."""
        single = input.dim() == 4 and input.shape[0] == 1
        if is_captured() or not single or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return 0, 0
        rows, cols = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                input.shape[2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        return rows, cols


POINTWISE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: PointwiseConv1d,
    nn.Conv2d: PointwiseConv2d,
    nn.Conv3d: PointwiseConv3d,
}


KEEPS_WINDOWS = nn.Conv2d.__name__
"""Class name of the layers whose reads of few places keep the windows of the view for the backward pass."""


register_layer_kind(Conv(nn.Conv1d, F.conv1d))
register_layer_kind(Conv(nn.Conv2d, F.conv2d))
register_layer_kind(Conv(nn.Conv3d, F.conv3d))
