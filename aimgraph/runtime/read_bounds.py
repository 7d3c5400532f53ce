"""How large read weights are drawn: b of U(-b, b), a formula of the layer and of k, its memory channels."""

import math

import torch
from torch import Tensor, nn

from aimgraph.runtime.layer_kinds import kind_of
from aimgraph.runtime.layers import concat_weight, read_weight_shape, stored_weight, weight_shape


def wide_weight(layer: nn.Module, channels: int, device: str = "cpu") -> Tensor:
    """Zeros of the shape of [Wx | Wm]."""
    base, read = weight_shape(layer), read_weight_shape(layer, channels)
    return concat_weight(layer, torch.zeros(base, device=device), [torch.zeros(read, device=device)])


def layer_bound(layer: nn.Module, channels: int) -> float:
    """`1 / sqrt(f)`, with f the size of dimension 1 of [Wx | Wm] times the size of the kernel.

    So torch draws the weight of a new layer that has the memory channels from the beginning.
    """
    return 1 / math.sqrt(wide_weight(layer, channels, "meta").shape[1:].numel())


def memory_bound(layer: nn.Module, channels: int) -> float:
    """`sqrt(3 / (k * taps))`: values of unit deviation make a term of about unit deviation, whatever the layer."""
    return math.sqrt(3 / (channels * math.prod(kind_of(layer).kernel(layer))))


def feature_bound(layer: nn.Module, channels: int) -> float:
    """`sqrt(3) * rms(Wx) * sqrt(C / (g * k))`: values of unit deviation add as much to the output as such features do.

    That of `layer_bound` where the layer stands for a call whose weight is not known, or has no values.
    """
    held = next(layer.parameters(), None)
    if held is None or held.is_meta:
        return layer_bound(layer, channels)
    weight = stored_weight(layer).detach()  # type: ignore[arg-type]
    square = float(weight.abs().double().square().mean())
    kind = kind_of(layer)
    return math.sqrt(3 * square * kind.channels(layer)[0] / (kind.groups(layer) * channels))


READ_BOUND = layer_bound
"""The one that ``start="zero_values"`` draws with, times ``start_scale``."""


def bounds_of(layer: nn.Module, channels: int) -> dict[str, float]:
    """Start -> b of the read weights that it draws, at a scale of 1."""
    return {"zero_reads": 0.0, "zero_values": READ_BOUND(layer, channels), "drawn": layer_bound(layer, channels)}
