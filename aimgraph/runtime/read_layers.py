"""Read layers: a layer's clone over k memory channels."""

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.layers import (
    AffineLayer,
    concat_weight,
    is_transposed,
    read_weight_shape,
    split_weight,
    stored_weight,
    torch_kind,
    weight_shape,
)
from aimgraph.torch_private import ConvNd


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
        if torch.compiler.is_compiling() or not single or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return 0, 0
        rows, cols = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                input.shape[2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        return rows, cols


POINTWISE: dict[type[nn.Module], type[AffineLayer]] = {
    nn.Conv1d: PointwiseConv1d,
    nn.Conv2d: PointwiseConv2d,
    nn.Conv3d: PointwiseConv3d,
}


def _is_pointwise(layer: AffineLayer) -> bool:
    return (
        isinstance(layer, ConvNd)
        and all(size == 1 for size in layer.kernel_size)
        and (layer.padding == "valid" or not any(map(bool, layer.padding)))
    )


def clone_layer(layer: AffineLayer, weight: nn.Parameter, channels: int, *, raw: bool = False) -> AffineLayer:
    """The same layer over `channels` other channels: one group, no bias, no hooks, `weight`.

    Class, kernel, stride, padding, dilation, padding mode and whatever else the layer's own
    `forward` uses come from `layer`; nothing that holds parameters or buffers is shared. With
    `raw`, the class is torch's own, so that `weight` is used as it is.
    """
    kind = torch_kind(layer) if raw else type(layer)
    if _is_pointwise(layer):
        kind = POINTWISE.get(kind, kind)
    elif kind is nn.Conv2d:
        kind = FewPlacesConv2d
    clone = kind.__new__(kind)
    clone.__dict__.update(layer.__dict__)
    for name, value in layer.__dict__.items():
        if isinstance(value, OrderedDict) and "hooks" in name:
            clone.__dict__[name] = OrderedDict()
    for name in ("weight", "bias"):  # what a hook computes, of torch.nn.utils.weight_norm and its like
        clone.__dict__.pop(name, None)
    helpers = {name: child for name, child in layer._modules.items() if child is not None and not _holds_tensors(child)}
    clone.__dict__["_modules"] = {} if raw else helpers
    clone.__dict__["_buffers"] = {}
    clone.__dict__["_parameters"] = {"weight": weight, "bias": None}
    if isinstance(clone, nn.Linear):
        clone.in_features = channels
    else:
        clone.in_channels, clone.groups = channels, 1
    return clone


def read_layer(layer: AffineLayer, channels: int, init: str, *, raw: bool = False) -> AffineLayer:
    """layer(.; Wm): the same layer over `channels` memory channels, without bias, one group.

    Args:
        layer: The site.
        channels: k.
        init: ``"zero"``, or ``"default"``: the part of the layer's own initialisation of its
            widened weight that falls on the memory channels.
        raw: Whether the layer transforms its own weight; Wm is used as it is.
    """
    weight = read_weight(layer, channels, init).to(stored_weight(layer))
    return clone_layer(layer, nn.Parameter(weight.detach()), channels, raw=raw)


def read_weight(layer: AffineLayer, channels: int, init: str) -> Tensor:
    """Wm for k memory channels at `layer`, as `init` says; see `read_layer`."""
    if init == "default":
        return _default_weight(layer, channels)
    return torch.zeros(read_weight_shape(layer, channels))


def _holds_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _default_weight(layer: AffineLayer, channels: int) -> Tensor:
    base = torch.zeros(weight_shape(layer))
    read = torch.zeros(read_weight_shape(layer, channels))
    wide = concat_weight(layer, base, [read])
    fresh = clone_layer(layer, nn.Parameter(wide), wide.shape[0 if is_transposed(layer) else 1], raw=True)
    fresh.reset_parameters()
    return split_weight(layer, fresh.weight.detach(), [channels])[1][0]


def read_bound(layer: AffineLayer, channels: int, init: str) -> float:
    """The largest absolute value that Wm for k memory channels can be made with, as `init` says.

    torch draws the weight of a layer from U(-b, b) with b = 1 / sqrt(size of dimension 1 * size of the kernel).
    """
    if init != "default":
        return 0.0
    _, inner, *kernel = weight_shape(layer)
    return 1 / math.sqrt((inner + (0 if is_transposed(layer) else channels)) * math.prod(kernel))
