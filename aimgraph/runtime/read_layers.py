"""Read layers: a layer's clone over k memory channels."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from aimgraph.runtime.layer_kinds import AffineLayer, is_layer, kind_of
from aimgraph.runtime.layers import concat_weight, read_weight_shape, split_weight, stored_weight, weight_shape


def clone_layer(layer: nn.Module, weight: nn.Parameter, channels: int, *, raw: bool = False) -> AffineLayer:
    """The same layer over `channels` other channels: one group, no bias, no hooks, `weight`.

    Class, kernel, stride, padding, dilation, padding mode and whatever else the layer's own
    `forward` uses come from `layer`; nothing that holds parameters or buffers is shared. With
    `raw`, class and methods are those of the kind, so that `weight` is used as it is.
    """
    kind = kind_of(layer)
    made = kind.read_class(layer, raw=raw)
    clone = made.__new__(made)
    clone.__dict__.update(layer.__dict__)
    for name, value in layer.__dict__.items():
        if isinstance(value, OrderedDict) and "hooks" in name:
            clone.__dict__[name] = OrderedDict()
    computed = "weight", "bias"  # by a hook, of torch.nn.utils.weight_norm and its like
    for name in (*computed, *(kind.methods if raw else ())):
        clone.__dict__.pop(name, None)
    helpers = {name: child for name, child in layer._modules.items() if child is not None and not _holds_tensors(child)}
    clone.__dict__["_modules"] = {} if raw else helpers
    clone.__dict__["_buffers"] = {}
    clone.__dict__["_parameters"] = {"weight": weight, "bias": None}
    kind.set_inputs(clone, channels, 1)
    assert is_layer(clone)
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


def read_weight(layer: nn.Module, channels: int, init: str) -> Tensor:
    """Wm for k memory channels at `layer`, as `init` says; see `read_layer`."""
    if init == "default":
        return _default_weight(layer, channels)
    return torch.zeros(read_weight_shape(layer, channels))


def _holds_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _wide_weight(layer: nn.Module, channels: int, device: str = "cpu") -> Tensor:
    base, read = weight_shape(layer), read_weight_shape(layer, channels)
    return concat_weight(layer, torch.zeros(base, device=device), [torch.zeros(read, device=device)])


def _default_weight(layer: nn.Module, channels: int) -> Tensor:
    wide, kind = _wide_weight(layer, channels), kind_of(layer)
    fresh = clone_layer(layer, nn.Parameter(wide), wide.shape[kind.in_axis], raw=True)
    kind.draw(fresh)
    return split_weight(layer, fresh.weight.detach(), [channels])[1][0]


def read_bound(layer: nn.Module, channels: int, init: str) -> float:
    """The largest absolute value that Wm for k memory channels can be made with, as `init` says.

    torch draws the weight of a layer from U(-b, b) with b = 1 / sqrt(size of dimension 1 * size of the kernel).
    """
    return 1 / math.sqrt(_wide_weight(layer, channels, "meta").shape[1:].numel()) if init == "default" else 0.0
