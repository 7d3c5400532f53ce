"""Which layers can read: those whose output is affine in their input channels.

A layer that inherits its `forward` from torch is one. Any other subclass is decided by watching it
run once on fake tensors: pad the input by any rule, call one convolution or linear function with
the layer's own weight, return the result, and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from aimgraph.fakes import fake_copy
from aimgraph.runtime.layers import AffineLayer

_TORCH_KINDS: tuple[type[AffineLayer], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.linear,
)


@dataclass(frozen=True)
class LayerKind:
    """What find_sites needs to know of a convolution or linear layer.

    Attributes:
        name: Name of the class, e.g. ``Conv2d``.
        affine: Whether it can read a memory.
        widenable: Whether its weight can be widened; if not, only the split form is possible.
        reason: Why it is not affine, or not widenable; empty otherwise.
    """

    name: str
    affine: bool
    widenable: bool
    reason: str = ""


def is_layer(module: nn.Module) -> bool:
    """Whether `module` is a convolution or a linear layer, of whatever subclass."""
    return isinstance(module, _TORCH_KINDS)


def classify_layers(root: nn.Module) -> dict[nn.Module, LayerKind]:
    """The kind of every convolution and linear layer below `root`.

    Asked once, before tracing: inside a trace a layer can't be run for itself.
    """
    return {module: classify(module) for module in root.modules() if isinstance(module, _TORCH_KINDS)}


def classify(layer: AffineLayer) -> LayerKind:
    """The kind of one layer."""
    name = type(layer).__name__
    if not _inherits_forward(layer):
        return _watch(layer)
    if "weight" not in layer._parameters or layer._forward_pre_hooks:
        return LayerKind(name, True, False, "its weight or input is transformed before use: split form only")
    return LayerKind(name, True, True)


def torch_kind(layer: AffineLayer) -> type[AffineLayer]:
    """The torch class that `layer` descends from."""
    return next(kind for kind in _TORCH_KINDS if isinstance(layer, kind))


def _inherits_forward(layer: AffineLayer) -> bool:
    kind = torch_kind(layer)
    names = ("forward", "_conv_forward") if isinstance(layer, _ConvNd) else ("forward",)
    return all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in names)


def _watch(layer: AffineLayer) -> LayerKind:
    name = type(layer).__name__
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        copy = fake_copy(layer, mode)
        with mode, torch.no_grad(), _Watcher(copy, _probe_input(layer)) as watcher:
            output = copy.forward(watcher.stream)
    except Exception as error:  # any code may stand in a forward; the reason is reported
        return LayerKind(name, False, False, f"its own forward failed on a probe input: {error}".split("\n")[0])
    reason = watcher.objection or ("" if output is watcher.stream else "its own forward goes on after the layer")
    if reason:
        return LayerKind(name, False, False, reason)
    if watcher.transformed:
        return LayerKind(name, True, False, "its weight is transformed before use: split form only")
    return LayerKind(name, True, True)


def _probe_input(layer: AffineLayer) -> Tensor:
    weight = layer.weight
    if isinstance(layer, nn.Linear):
        return torch.empty(2, layer.in_features, dtype=weight.dtype, device=weight.device)
    reach = max(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    grid = [max(16, 2 * reach)] * len(layer.kernel_size)
    return torch.empty(2, layer.in_channels, *grid, dtype=weight.dtype, device=weight.device)


class _Watcher(TorchFunctionMode):
    """Follows the input through a layer's own forward and notes the first thing that isn't allowed."""

    def __init__(self, layer: AffineLayer, stream: Tensor) -> None:
        super().__init__()
        self.layer, self.stream = layer, stream
        self.called = self.transformed = False
        self.objection = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        used = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not made or any(result is leaf for leaf in used):
            return result
        if self.stream not in _Identities(used):
            self.transformed = True  # arithmetic on the weight: legal, but Wm can't go through it
        elif func in _FUNCTIONS and not self.called:
            self._note_call(func, args, kwargs)
            self.stream = result
        elif func is F.pad and not self.called and _pads_with_zero_or_input(*args[2:], **kwargs):
            self.stream = result
        else:
            self.objection = self.objection or f"its own forward calls {resolve_name(func) or func} on the input"
        return result

    def _note_call(self, func: Any, args: Any, kwargs: Any) -> None:
        self.called = True
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        if given["input"] is not self.stream:
            self.objection = "its own forward uses the input as a weight"
        if given["weight"] is not self.layer.weight:
            self.transformed = True


class _Identities:
    """Membership by identity: tensors compare by value."""

    def __init__(self, items: list[Tensor]) -> None:
        self.ids = {id(item) for item in items}

    def __contains__(self, item: Tensor) -> bool:
        return id(item) in self.ids


def _pads_with_zero_or_input(mode: str = "constant", value: float | None = None, **_: Any) -> bool:
    return mode != "constant" or not value
