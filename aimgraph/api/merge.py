"""merge: the base again, with what it reads in its own biases."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aimgraph.api.fold import fold
from aimgraph.api.strip import strip
from aimgraph.copies import copy_module
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import named_parts, parts_of, replace_part
from aimgraph.emit.record import record_of
from aimgraph.errors import PlanError


@dataclass(frozen=True)
class Merged:
    """What `merge` gives.

    Attributes:
        model: An instance of the base's class without any memory.
        biases: Layers whose bias holds what they read.
        left: Layers that read what no bias can hold -> why; the model computes without it.
    """

    model: nn.Module
    biases: tuple[str, ...]
    left: dict[str, str]


def merge(aim: nn.Module, *, partial: bool = False) -> Merged:
    """A plain copy of the base whose biases hold what its layers read, where that is exact.

    It is exact where a layer of torch's own, called once, reads a memory that never changes and gets the same from it
    at every place: linear layers on [B, F], and convolutions whose map is the same all over the grid.

    Args:
        aim: A transformed module in split form, or a larger model with transformed parts; it is not changed.
        partial: Take what is exact and leave the rest out. The result then computes something else than `aim`.

    Returns:
        The model, which computes in eval mode what `aim` does (to rounding), and shares nothing with it.

    Raises:
        PlanError: `aim` was not transformed; or some layers read what no bias can hold, and it is not `partial`.
        ConfigError: Its read weights are part of the base's own weights (concat form), or its memory is disabled.
    """
    parts_of(aim)
    if isinstance(aim, AimModule):
        made = _merged(aim)
    else:
        whole = copy_module(aim)
        found: dict[str, Merged] = {}
        for path, part in named_parts(whole).items():
            found[path] = _merged(part)
            replace_part(whole, part, found[path].model)
        made = Merged(
            whole,
            tuple(f"{path}.{name}" for path, one in found.items() for name in one.biases),
            {f"{path}.{name}": why for path, one in found.items() for name, why in one.left.items()},
        )
    if made.left and not partial:
        lines = "\n".join(f"  {name}: {why}" for name, why in list(made.left.items())[:4])
        rest = f"\n  and {len(made.left) - 4} more" if len(made.left) > 4 else ""
        raise PlanError(
            f"{len(made.left)} of {len(made.left) + len(made.biases)} layers read what no bias can hold:\n"
            f"{lines}{rest}\nUse aimgraph.fold, which keeps maps for them, or partial=True to leave that out"
        )
    return made


def _merged(aim: AimModule) -> Merged:
    folded, base = fold(aim), strip(aim)
    in_eval = {
        read.name
        for memory in record_of(aim).plan.memories
        for read in memory.reads
        if any(call.graph != "train" for call in read.calls)
    }
    folds: Any = folded.folds
    biases = tuple(name for name in folds.biases if name in in_eval)
    left = dict.fromkeys(folds.maps, "what it reads differs from place to place of its output")
    left |= folds.left
    left |= {name: "it is called in train mode only" for name in folds.biases if name not in in_eval}
    with torch.no_grad():
        for name in biases:
            layer: Any = base.get_submodule(name)
            given: Any = folded.get_submodule(name).bias
            if layer.bias is None:
                layer.bias = nn.Parameter(given.clone())
            else:
                layer.bias.copy_(given)
    return Merged(base, biases, left)
