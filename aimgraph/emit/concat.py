"""Layers in concat form: read weights are part of their weight, and state dicts hold the two apart."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.emit.record import ConcatSite, record_of
from aimgraph.runtime.layer_kinds import AffineLayer
from aimgraph.runtime.layers import concat_weight, layer_at, replace_weight, split_weight


def narrow(layer: AffineLayer, widened: ConcatSite) -> None:
    """Give a widened layer its own weight and channel count back."""
    weight, _ = split_weight(layer, layer.weight.detach(), list(widened.channels))
    replace_weight(layer, weight.clone(), -sum(widened.channels))


def split_concat_weights(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """State-dict hook: a widened weight is written as the base's weight and the read weights."""
    for site in record_of(module).concat_sites:
        layer = layer_at(module, site.site)
        for key in (f"{prefix}{path}.weight" for path in site.paths):
            weight, reads = split_weight(layer, state[key], list(site.channels))
            state[key] = weight
            state.update({f"{prefix}{name}": read for name, read in zip(site.keys, reads, strict=True)})


def join_concat_weights(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Load hook: a base-shaped weight and ``aim`` keys are put together into the widened weight."""
    for site in record_of(module).concat_sites:
        layer = layer_at(module, site.site)
        keys = [f"{prefix}{path}.weight" for path in site.paths]
        base, reads = split_weight(layer, layer.weight.detach(), list(site.channels))
        parts = dict(zip((keys[0], *(f"{prefix}{name}" for name in site.keys)), (base, *reads), strict=True))
        aliases = [state.pop(key) for key in keys if key in state]
        given = {name: state.pop(name) for name in parts if name in state} | ({keys[0]: aliases[0]} if aliases else {})
        missing += [name for name in parts if name not in given]
        for name, value in given.items():
            if value.shape == parts[name].shape:
                parts[name] = value.to(base)
            else:
                errors.append(
                    f"size mismatch for {name}: the checkpoint has {list(value.shape)}, "
                    f"this model needs {list(parts[name].shape)}"
                )
        weight, *reads = parts.values()
        state.update(dict.fromkeys(keys, concat_weight(layer, weight, reads)))


def without_concat(forward: Any) -> Any:
    """A forward of the base's graph that sees the widened layers with their own weights."""

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        weights: dict[str, Tensor] = {}
        for site in record_of(self).concat_sites:
            layer = layer_at(self, site.site)
            weights[f"{site.site}.weight"] = split_weight(layer, layer.weight, list(site.channels))[0]
        shell = _Shell(self, forward)
        return torch.func.functional_call(shell, {f"inner.{k}": v for k, v in weights.items()}, args, kwargs)

    return run


class _Shell(nn.Module):
    """Calls a given forward on `inner`, so that `functional_call` can swap tensors below it."""

    def __init__(self, inner: nn.Module, call: Any) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.inner, *args, **kwargs)
