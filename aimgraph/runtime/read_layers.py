"""Read layers: a layer's clone over k memory channels."""

import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.reproducible import own_stream
from aimgraph.runtime.layer_kinds import AffineLayer, is_layer, kind_of, kind_of_class
from aimgraph.runtime.layers import read_weight_shape, split_weight, stored_weight
from aimgraph.runtime.read_bounds import READ_BOUND, wide_weight
from aimgraph.runtime.start import Start


def clone_layer(layer: nn.Module, weight: nn.Parameter, channels: int, *, raw: bool = False) -> AffineLayer:
    """The same layer over `channels` other channels: one group, no bias, no hooks, `weight`.

    Class, kernel, stride, padding, dilation, padding mode and whatever else the layer's own
    `forward` uses come from `layer`; nothing that holds parameters or buffers is shared, and no method that goes
    around the forward. With `raw`, class and methods are those of the kind, so that `weight` is used as it is.
    """
    kind = kind_of(layer)
    made = _class_around_forward(kind.read_class(layer, raw=raw))
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


def own_methods(made: type[nn.Module]) -> dict[str, Any]:
    """What a class of layers has in place of its kind's, but for what computes the output: the kind's, by name.

    Such a ``train()`` or ``extra_repr()`` may need parameters and attributes that a read layer has not, or merge them
    into the weight.
    """
    if made.__module__.startswith(("torch.nn.modules.", "aimgraph.runtime.")):
        return {}
    kind = kind_of_class(made)
    names = [name for name in dir(kind.layer) if name not in kind.methods and (name in _AROUND or name[:2] != "__")]
    found = {name: inspect.getattr_static(kind.layer, name) for name in names}
    return {name: value for name, value in found.items() if inspect.getattr_static(made, name) is not value}


_AROUND = ("__repr__", "__setstate__")


def _class_around_forward(made: type[nn.Module]) -> type[nn.Module]:
    """The class itself, or one with its forward, and with the methods of its kind around that."""
    methods = own_methods(made)
    if not methods:
        return made
    known = (one for one in made.__subclasses__() if _ForwardOnly in one.__bases__)
    names = {name: getattr(made, name) for name in ("__module__", "__qualname__", "__doc__")}
    return next(known, None) or type(made.__name__, (_ForwardOnly, made), methods | names)


class _ForwardOnly:
    """Has a class of layers made that has the forward of another, which no module knows by name."""

    __deepcopy__ = None

    def __init_subclass__(cls) -> None:
        """Nothing, where the other class registers what descends from it."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _made, (type(self).__bases__[1],), vars(self)


def _made(kind: type[nn.Module]) -> nn.Module:
    made = _class_around_forward(kind)
    return made.__new__(made)


def read_layer(layer: AffineLayer, channels: int, start: Start, name: str = "", *, raw: bool = False) -> AffineLayer:
    """layer(.; Wm): the same layer over `channels` memory channels, without bias, one group.

    Args:
        layer: The site.
        channels: k.
        start: Says whether Wm is zero, or how it is drawn.
        name: Of the read, for the stream of random numbers that it is drawn from.
        raw: Whether the layer transforms its own weight; Wm is used as it is.
    """
    weight = read_weight(layer, channels, start, name).to(stored_weight(layer))
    return clone_layer(layer, nn.Parameter(weight.detach()), channels, raw=raw)


def read_weight(layer: nn.Module, channels: int, start: Start, name: str = "") -> Tensor:
    """Wm for k memory channels at `layer`, as `start` says; see `read_layer`."""
    shape, stream = read_weight_shape(layer, channels), f"reads/{name}"
    if start.kind == "zero_values":
        return start.uniform(shape, start.scale * READ_BOUND(layer, channels), stream)
    if start.kind == "zero_reads":
        return torch.zeros(shape)
    with own_stream(f"{start.stream}/{stream}"):
        return _own_weight(layer, channels)


def _holds_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _own_weight(layer: nn.Module, channels: int) -> Tensor:
    """The part of the layer's own initialisation of its widened weight that falls on the memory channels."""
    wide, kind = wide_weight(layer, channels), kind_of(layer)
    fresh = clone_layer(layer, nn.Parameter(wide), wide.shape[kind.in_axis], raw=True)
    kind.draw(fresh)
    return split_weight(layer, fresh.weight.detach(), [channels])[1][0]
