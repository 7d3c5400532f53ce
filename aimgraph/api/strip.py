"""strip: the base back, bit for bit."""

from torch import nn

from aimgraph.copies import copy_module
from aimgraph.emit.bare import bare, rebind_hooks
from aimgraph.emit.concat import split_layers
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import parts_of, replace_module


def strip(aim: nn.Module) -> nn.Module:
    """The base back: an instance of its class with the present base weights and buffers.

    Args:
        aim: A transformed module, or a larger model with transformed parts; it is not changed, and
            shares nothing with the result.

    Raises:
        PlanError: `aim` was not transformed.
    """
    parts_of(aim)
    if isinstance(aim, AimModule):
        return _finished(copy_module(bare(aim)), aim)
    whole = copy_module(aim)
    for part in parts_of(whole):
        replace_module(whole, part, _finished(bare(part), part))
    return whole


def _finished(base: nn.Module, aim: AimModule) -> nn.Module:
    rebind_hooks(base)
    split_layers(base, aim)
    return base
