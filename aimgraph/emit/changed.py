"""Sites whose layer is not the one that their read was made for: somebody has put another into a transformed module.

A layer that fits nevertheless (another dilation, one output where there were seven) would run with the old read, so
that each forward asks whether the layers are still the same.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aimgraph.compiler.aim_paths import aim_path
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.emit.record import record_of
from aimgraph.errors import AimgraphError, PlanError
from aimgraph.runtime.layer_kinds import is_layer, kind_of
from aimgraph.runtime.layers import weight_shape

_HAS = "has "

_OPTIONS = ("stride", "padding", "dilation", "output_padding", "padding_mode")


def run_told(forward: Callable[..., Any], aim: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a forward gives, or an error that names the layers that were changed.

    Raises:
        PlanError: A layer has other outputs or options than its read, or the forward fails where a site is not what it
            was.
    """
    record = record_of(aim)
    if record.enabled and not (record.standing and all(one.is_there() for one in record.standing)):
        refuse_changed(aim)
        record.standing = _standing(aim)
    try:
        return forward(aim, *args, **kwargs)
    except AimgraphError as error:
        if not isinstance(error, PlanError):
            raise
        failed: Exception = error
    except Exception as error:  # what torch, or the base's own code, says of shapes that don't fit
        failed = error
    found = changed_sites(aim)
    if not found:
        raise failed
    raise PlanError(_told(found)) from failed


def _told(found: Mapping[str, str]) -> str:
    told = "; ".join(f"{site} {why}" for site, why in found.items())
    return (
        f"the layers of this module were changed after its transform: {told}. Call aim = aimgraph.refit(aim): it makes "
        "the reads of such layers anew and keeps all others"
    )


def refuse_changed(aim: nn.Module) -> None:
    """Refuse layers of the same kind that have other outputs or options than what they read was made for.

    What wraps a layer, or stands in its place and is no layer, may call it as before.

    Raises:
        PlanError: There are such.
    """
    found = {site: why for site, why in _changed(aim) if why.startswith(_HAS)}
    if found:
        raise PlanError(_told(found))


@dataclass(frozen=True)
class Standing:
    """Where a module was registered.

    Attributes:
        held: There.
        name: Its name.
        module: Itself.
        options: Attribute -> value, for a layer that reads.
        shape: Of its weight.
    """

    held: dict[str, Any]
    name: str
    module: nn.Module | None
    options: tuple[tuple[str, Any], ...] = ()
    shape: torch.Size | None = None

    def is_there(self) -> bool:
        """Whether it still is, with the same options."""
        if self.held.get(self.name) is not self.module:
            return False
        if self.options or self.shape is not None:
            attributes = vars(self.module)
            if _weight_shape(attributes) != self.shape:
                return False
            for name, value in self.options:
                if attributes.get(name) is not value:
                    return False
        return True


def _standing(aim: nn.Module) -> tuple[Standing, ...]:
    """The layers that read, and what is around them, each once."""
    found: dict[tuple[int, str], Standing] = {}
    for memory in record_of(aim).plan.memories:
        for read in memory.reads:
            parent: nn.Module | None = aim
            *above, last = read.site.split(".")
            for name in above:
                if parent is not None:
                    held, parent = parent._modules, parent._modules.get(name)
                    found.setdefault((id(held), name), Standing(held, name, parent))
            if parent is not None:
                layer = parent._modules.get(last)
                attributes = {} if layer is None else vars(layer)
                options = tuple((name, attributes[name]) for name in _OPTIONS if name in attributes)
                found[id(parent._modules), last] = Standing(
                    parent._modules, last, layer, options, _weight_shape(attributes)
                )
    return tuple(found.values())


def _weight_shape(attributes: dict[str, Any]) -> torch.Size | None:
    weight = attributes.get("_parameters", {}).get("weight")
    return None if weight is None else weight.shape


def changed_sites(aim: nn.Module) -> dict[str, str]:
    """Path of a site -> how its layer differs from the one that its read was made for; those that differ only."""
    return dict(_changed(aim))


def _changed(aim: nn.Module) -> Iterator[tuple[str, str]]:
    record = record_of(aim)
    for site in record.concat_sites:
        layer: Any = submodule_at(aim, site.site)
        if not is_layer(layer) or weight_shape(layer) != (site.shape or weight_shape(layer)):
            yield site.site, f"{_HAS}no place for its read weights in its weight"
    for memory in record.plan.memories:
        for read in memory.reads:
            if read.function or read.lowering == "concat":
                continue
            layer, made = submodule_at(aim, read.site), submodule_at(aim, aim_path(memory.name, "reads", read.name))
            if made is None:
                continue
            if layer is None:
                yield read.site, "is not there any more"
            elif not is_layer(layer) or kind_of(layer) is not kind_of(made):
                yield read.site, f"is a {type(layer).__name__} and was a {read.kind}"
            elif apart := _apart(layer, made):
                yield read.site, apart


def _apart(layer: nn.Module, read: nn.Module) -> str:
    """How the options of a layer differ from those of its read layer, which was cloned from it."""
    kind = kind_of(layer)
    pairs = {
        "outputs": (kind.channels(layer)[1], kind.channels(read)[1]),
        "kernel": (kind.kernel(layer), kind.kernel(read)),
    }
    weight = layer._parameters.get("weight")
    if weight is not None and weight.is_floating_point():  # quantised ones are packed
        pairs["weight"] = (list(weight.shape), list(weight_shape(layer)))  # whose own numbers may be of another one
    pairs |= {name: (getattr(layer, name, None), getattr(read, name, None)) for name in _OPTIONS}
    told = ", ".join(f"{name} {now} and had {was}" for name, (now, was) in pairs.items() if now != was)
    return told and f"{_HAS}{told}"
