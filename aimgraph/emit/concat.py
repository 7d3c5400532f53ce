"""Layers in concat form: read weights are part of their weight, and state dicts hold the two apart."""

from typing import Any

from torch import nn

from aimgraph.emit.record import record_of
from aimgraph.errors import AimgraphError, ConfigError
from aimgraph.runtime.layers import concat_weight, layer_at, replace_weight, split_weight


def refuse_concat(aim: nn.Module, what: str, error: type[AimgraphError] = ConfigError) -> None:
    """Raise an error that says `what` can't be done where read weights are part of the base's own weights."""
    for site in record_of(aim).concat_sites:
        raise error(
            f'{what} in concat form ({site.site}): transform with lowering="split"; the state dict of this module '
            "loads into it"
        )


def split_layers(base: nn.Module, aim: nn.Module) -> None:
    """Give the layers in concat form of the base inside `aim` their own weights and channel counts back."""
    for site in record_of(aim).concat_sites:
        layer = layer_at(base, site.site)
        weight, _ = split_weight(layer, layer.weight.detach(), list(site.channels))
        replace_weight(layer, weight.clone(), -sum(site.channels))


def split_concat_weights(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """State-dict hook: a weight in concat form is written as the base's weight and the read weights."""
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
    """Load hook: a base-shaped weight and ``aim`` keys are put together into one weight."""
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
