"""Sites whose layer is not the one that their read was made for: somebody has put another into a transformed module."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from aimgraph.compiler.aim_paths import aim_path
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.emit.record import record_of
from aimgraph.errors import AimgraphError, PlanError
from aimgraph.runtime.layer_kinds import is_layer, kind_of
from aimgraph.runtime.layers import weight_shape

_OPTIONS = ("stride", "padding", "dilation", "output_padding", "padding_mode")


def run_told(forward: Callable[..., Any], aim: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a forward gives; where it fails for a layer that was changed, an error that says so.

    Raises:
        PlanError: It fails, and a site is not what it was.
    """
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
    told = "; ".join(f"{site} {why}" for site, why in found.items())
    raise PlanError(
        f"the layers of this module were changed after its transform: {told}. Call aim = aimgraph.refit(aim): it makes "
        "the reads of such layers anew and keeps all others"
    ) from failed


def changed_sites(aim: nn.Module) -> dict[str, str]:
    """Path of a site -> how its layer differs from the one that its read was made for; those that differ only."""
    return dict(_changed(aim))


def _changed(aim: nn.Module) -> Iterator[tuple[str, str]]:
    record = record_of(aim)
    for site in record.concat_sites:
        layer: Any = submodule_at(aim, site.site)
        if not is_layer(layer) or weight_shape(layer) != (site.shape or weight_shape(layer)):
            yield site.site, "has no place for its read weights in its weight"
    for memory in record.plan.memories:
        for read in memory.reads:
            if read.function or read.lowering == "concat":
                continue
            layer, made = submodule_at(aim, read.site), aim.get_submodule(aim_path(memory.name, "reads", read.name))
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
    pairs |= {name: (getattr(layer, name, None), getattr(read, name, None)) for name in _OPTIONS}
    return ", ".join(f"has {name} {now} and had {was}" for name, (now, was) in pairs.items() if now != was)
