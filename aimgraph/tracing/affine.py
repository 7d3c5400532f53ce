"""Which layers can read: those whose output is affine in their input channels.

A layer that inherits its `forward` from torch is one. Any other subclass, and a layer whose forward is replaced on the
instance, is decided by watching it run once in each mode on fake tensors: pad the input by any rule, call one
convolution or linear function with the layer's own weight, return the result, and nothing else, in place neither.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from aimgraph.compiler.signature import Calls, Classified, FunctionCall
from aimgraph.errors import PlanError
from aimgraph.fake.tensors import fake_copy, quiet
from aimgraph.runtime.layer_kinds import FUNCTIONS, AffineLayer, is_layer, kind_of
from aimgraph.runtime.layers import given_to, stored_weight
from aimgraph.torch_private import FakeTensorMode, storage_of, tree_leaves, version_of


def classify_layers(root: nn.Module) -> dict[nn.Module, Classified]:
    """How every convolution and linear layer below `root` can read, if at all.

    Asked once, before tracing: inside a trace a layer can't be run for itself. Layers that differ in
    nothing but their values are watched once.

    Raises:
        PlanError: All of their weights are elsewhere between calls.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    seen: dict[Any, Classified] = {}
    kinds: dict[nn.Module, Classified] = {}
    for module in root.modules():
        if is_layer(module):
            key = _build_of(module)
            if key not in seen:
                seen[key] = classify(module, mode)
            kinds[module] = seen[key]
    if kinds and all(_brings_its_weight(layer) for layer in kinds):
        first = next(path for path, module in root.named_modules() if module in kinds)
        raise PlanError(f"no layer has a weight of its own: {first}: {_OFFLOADED}")
    return kinds


def _build_of(layer: AffineLayer) -> Any:
    """What the kind of a layer can depend on; the layer itself, if that is more than plain options."""
    options, shapes = [], []
    for name, value in sorted(vars(layer).items()):
        if name == "_parameters":
            shapes = [(key, None if p is None else (p.shape, p.dtype, p.device)) for key, p in value.items()]
        elif isinstance(value, dict | set):
            if value:
                return layer
        elif isinstance(value, int | float | str | tuple | None):
            options.append((name, value))
        else:
            return layer
    return type(layer), tuple(options), tuple(shapes)


def classify(layer: AffineLayer, mode: FakeTensorMode | None = None) -> Classified:
    """How one layer can read; `mode` makes its tensors fake."""
    name = type(layer).__name__
    if layer._forward_hooks:
        reason = "it has a forward hook, which may change its output: register it on the result instead"
        return Classified(name, affine=False, reason=reason)
    if _brings_its_weight(layer):
        return Classified(name, affine=False, reason=_OFFLOADED)
    if not _inherits_forward(layer):
        return _watch(layer, mode or FakeTensorMode(allow_non_fake_inputs=True))
    return Classified(name, affine=True, raw="weight" not in layer._parameters or bool(layer._forward_pre_hooks))


def with_other_weights(
    root: nn.Module, kinds: Mapping[nn.Module, Classified], seen: Iterable[Calls]
) -> dict[nn.Module, Classified]:
    """Layers whose forward was seen to call their function with a weight of other outputs or another kernel.

    Slices of a weight are such. The layer has no read weight then: it is entered, and what it calls is a site.

    Args:
        root: The model.
        kinds: How its layers can read, as far as a small input has shown.
        seen: The calls that its forward makes.
    """
    layers = {path: module for path, module in root.named_modules() if module in kinds and kinds[module].affine}
    found = {}
    for path, call in ((path, call) for calls in seen for path, made in calls.made.items() for call in made):
        layer = layers.get(path)
        if layer is not None and kind_of(layer).function is not None and not _is_own(layer, call):
            why = f"its own forward calls {call.function} with a weight {list(call.weight)}, which is none of its own"
            found[layer] = replace(kinds[layer], affine=False, raw=False, enter=True, reason=why)
    return found


def _is_own(layer: nn.Module, call: FunctionCall) -> bool:
    kind = kind_of(layer)
    if kind.function is None or call.function != kind.function.__name__ or len(call.weight) < 2:
        return False
    return (kind.sizes(call.weight, call.groups)[1], call.weight[2:]) == (kind.channels(layer)[1], kind.kernel(layer))


def _inherits_forward(layer: AffineLayer) -> bool:
    kind = kind_of(layer)
    inherits = all(getattr(type(layer), name, None) is getattr(kind.layer, name, None) for name in kind.methods)
    return inherits and not _is_replaced(layer)


_OFFLOADED = "its forward is replaced and brings its weight, which is on the meta device: offload the result instead"


def _brings_its_weight(layer: Any) -> bool:
    return _is_replaced(layer) and stored_weight(layer).is_meta


def _is_replaced(layer: AffineLayer) -> bool:
    """Whether a method that computes the output is replaced on the instance, as hooks that offload weights do."""
    return not vars(layer).keys().isdisjoint(kind_of(layer).methods)


def _watch(layer: AffineLayer, mode: FakeTensorMode) -> Classified:
    """What a layer's own forward does in both modes: a dropout behind the layer does nothing in eval mode."""
    now = _watch_in(layer, mode, train=layer.training)
    other = _watch_in(layer, mode, train=not layer.training) if now.affine else now
    return now if other.affine and not other.raw else other


def _watch_in(layer: AffineLayer, mode: FakeTensorMode, *, train: bool) -> Classified:
    name = type(layer).__name__
    try:
        copy = fake_copy(layer, mode).train(train)
        weight = stored_weight(layer)
        probe = torch.empty(kind_of(layer).probe(layer), dtype=weight.dtype, device=weight.device)
        with quiet(), mode, torch.no_grad(), _Watcher(copy, probe) as watcher:
            output = copy.forward(watcher.stream)
    except Exception as error:  # any code may stand in a forward; the reason is reported
        return Classified(
            name, False, enter=True, reason=f"its own forward failed on a probe input: {error}".split("\n")[0]
        )
    watcher.raw = watcher.raw or _is_replaced(layer)  # another layer, a wider one, would not have it
    reason = watcher.objection or ("" if output is watcher.stream else "its own forward goes on after the layer")
    if watcher.raw and (watcher.padded or watcher.deviates):
        reason = reason or "its own forward transforms its weight and calls the layer with other arguments than its own"
    return Classified(name, not reason, watcher.raw, bool(reason), reason)


class _Watcher(TorchFunctionMode):
    """Follows the input through a layer's own forward and notes the first thing that isn't allowed."""

    def __init__(self, layer: AffineLayer, stream: Tensor) -> None:
        super().__init__()
        self.layer, self.stream = layer, stream
        self.called = self.padded = self.raw = self.deviates = False
        self.objection = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        used = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = [_state_of(leaf) for leaf in used]
        result = func(*args, **kwargs)
        written = [leaf for leaf, state in zip(used, before, strict=True) if _state_of(leaf) != state]
        if written:
            self._note_written(func, written)
            return result
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not made or any(result is leaf for leaf in used):
            return result
        if not any(leaf is self.stream for leaf in used):
            self.raw = True  # arithmetic on the weight: legal, but Wm can't go through it
        elif func in FUNCTIONS and not self.called:
            self._note_call(func, args, kwargs)
            self.stream = result
        elif func is F.pad and not self.called and _pads_with_zero_or_input(*args[2:], **kwargs):
            self.stream, self.padded = result, True
        else:
            self.objection = self.objection or f"its own forward calls {resolve_name(func) or func} on the input"
        return result

    def _note_written(self, func: Any, written: list[Tensor]) -> None:
        if any(storage_of(leaf) == storage_of(self.stream) for leaf in written):
            name = resolve_name(func) or func
            self.objection = self.objection or f"its own forward calls {name} in place on the input"
        own = {storage_of(parameter) for parameter in self.layer.parameters()}
        self.raw = self.raw or any(storage_of(leaf) in own for leaf in written)

    def _note_call(self, func: Any, args: Any, kwargs: Any) -> None:
        self.called = True
        given = given_to(func, args, kwargs)
        if given["input"] is not self.stream:
            self.objection = "its own forward uses the input as a weight"
        self.raw = self.raw or given["weight"] is not self.layer.weight
        own = {name: getattr(self.layer, name, None) for name in ("stride", "padding", "dilation")}
        self.deviates = any(name in given and _spread(given[name]) != _spread(value) for name, value in own.items())


def _state_of(tensor: Tensor) -> tuple[Any, ...]:
    """What changes where a tensor is overwritten, or another is put in its place."""
    if tensor.layout is not torch.strided:
        return (version_of(tensor),)
    return version_of(tensor), tensor.shape, tensor.stride(), storage_of(tensor)


def _spread(value: Any) -> Any:
    """One number for a size that is the same in every dimension."""
    if isinstance(value, tuple | list):
        return value[0] if len(set(value)) == 1 else tuple(value)
    return value


def _pads_with_zero_or_input(mode: str = "constant", value: float | None = None, **_: Any) -> bool:
    return mode != "constant" or not value
