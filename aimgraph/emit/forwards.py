"""What is wrapped around a compiled forward."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from aimgraph.emit.dispatch import dispatch
from aimgraph.emit.record import record_of
from aimgraph.emit.retrace import retraced, tracer_of
from aimgraph.errors import TraceError
from aimgraph.runtime.layers import layer_at, split_weight
from aimgraph.runtime.regions import closed_contexts
from aimgraph.torch_private import is_captured


def _around(call: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper of forwards that runs `call(forward, module, args, kwargs, **options)` in place of each."""

    def wrap(forward: Any, **options: Any) -> Any:
        @functools.wraps(forward)  # torch.export goes by the signature
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            return call(forward, self, args, kwargs, **options)

        return run

    return wrap


dispatched = _around(dispatch)
"""A forward that has the base's own stand in for it where the inputs lead elsewhere."""


@_around
def mode_checked(forward: Any, aim: nn.Module, args: Any, kwargs: Any) -> Any:
    """A forward that refuses to run the train graph for a part of the base in eval mode, or vice versa."""
    record = record_of(aim)
    train = aim.training and not record.frozen
    for path in record.moded:
        if path and aim.get_submodule(path).training != (train != (path in record.held.get(train, ()))):
            have, want = ("eval", "train") if train else ("train", "eval")
            raise TraceError(
                f"{path} is in {have} mode and the model in {want} mode; its forward depends on that mode, and "
                "there is one graph for all in train and one for all in eval mode: call train() or eval() on the "
                "whole model, or aimgraph.freeze_base to keep the base in eval mode"
            )
    return forward(aim, *args, **kwargs)


@_around
def retraceable(forward: Any, module: Any, args: Any, kwargs: Any) -> Any:
    """A forward that copies its graph into that of a tracer of torch.fx, where it is called on stand-ins."""
    if not is_captured() and tracer_of(args, kwargs) is not None:
        return retraced(module, module._graph, forward, args, kwargs)
    return forward(module, *args, **kwargs)


@_around
def contexts_closed(forward: Any, aim: nn.Module, args: Any, kwargs: Any) -> Any:
    """A forward that leaves grad mode and autocast as they were, even if it fails in the middle of a region."""
    with closed_contexts():
        return forward(aim, *args, **kwargs)


@_around
def without_concat(forward: Any, aim: nn.Module, args: Any, kwargs: Any) -> Any:
    """A forward of the base's graph that sees the layers in concat form with their own weights alone."""
    weights = {}
    for site in record_of(aim).concat_sites:
        layer = layer_at(aim, site.site)
        weights[f"inner.{site.site}.weight"] = split_weight(layer, layer.weight, list(site.channels))[0]
    return torch.func.functional_call(_Shell(aim, forward), weights, args, kwargs)


class _Shell(nn.Module):
    """Calls a given forward on `inner`, so that `functional_call` can swap tensors below it."""

    def __init__(self, inner: nn.Module, call: Any) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.inner, *args, **kwargs)
