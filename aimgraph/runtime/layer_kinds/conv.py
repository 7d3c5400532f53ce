"""Convolutions, `nn.Conv2d` and its like, and the faster layers that read in their place."""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime import plain_convs
from aimgraph.runtime.layer_kinds.kind import LayerKind, register_layer_kind
from aimgraph.runtime.plain_convs import PointwiseConv1d, PointwiseConv2d, PointwiseConv3d
from aimgraph.torch_private import is_captured


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


class FewPlacesConv2d(plain_convs.FewPlacesConv2d):
    """The same; what is exported or compiled is a convolution."""

    def _places(self, input: Tensor) -> tuple[int, int]:
        return (0, 0) if is_captured() else super()._places(input)


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
