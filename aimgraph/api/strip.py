"""strip: the base back, bit for bit."""

from torch import nn

from aimgraph.copies import copy_module
from aimgraph.emit.bare import bare, rebind_hooks
from aimgraph.emit.concat import narrow
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import parts_of, replace_module
from aimgraph.emit.record import record_of
from aimgraph.runtime.layers import layer_at


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
        base = copy_module(bare(aim))
        rebind_hooks(base)
        _narrow(base, aim)
        return base
    whole = copy_module(aim)
    for part in parts_of(whole):
        base = bare(part)
        rebind_hooks(base)
        _narrow(base, part)
        replace_module(whole, part, base)
    return whole


def _narrow(base: nn.Module, aim: AimModule) -> None:
    for site in record_of(aim).concat_sites:
        narrow(layer_at(base, site.site), site)
