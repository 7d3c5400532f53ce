"""strip: the base back, bit for bit."""

from torch import nn

from aimgraph.copies import copy_module
from aimgraph.emit.bare import bare, rebind_hooks
from aimgraph.emit.concat import split_layers
from aimgraph.emit.frozen import give_gradients
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import named_parts, parts_of, replace_module
from aimgraph.emit.record import record_of
from aimgraph.tracing.graph_modules import given_module


def strip(aim: nn.Module) -> nn.Module:
    """The base back: an instance of its class with the present base weights and buffers.

    What `freeze_base` stopped goes on: mode and required gradients are as they would be without it.

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
    for path, part in named_parts(whole).items():
        replace_module(whole, part, _finished(bare(part), part))
        give_gradients(whole, record_of(part).stopped.seen_from(path))
    return whole


def _finished(base: nn.Module, aim: AimModule) -> nn.Module:
    split_layers(base, aim)
    if record_of(aim).frozen:
        base.train(aim.training)
        give_gradients(base, record_of(aim).stopped.seen_from(""))
    base = given_module(base)
    rebind_hooks(base)
    return base
