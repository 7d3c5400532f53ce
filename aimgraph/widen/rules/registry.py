"""Which rule follows channels through which operator."""

import torch

from aimgraph.torch_private import OpOverload
from aimgraph.widen.flow import Call, Rule, name_of
from aimgraph.widen.labels import Labels
from aimgraph.widen.rules.moving import move
from aimgraph.widen.rules.pointwise import combine

RULES: dict[str, Rule] = {}
"""Name of an operator, without its namespace -> its rule."""


def rule_of(func: OpOverload) -> Rule:
    """The rule of an operator: its own, that of views or of pointwise operators, or the one that holds everything."""
    name = name_of(func)
    if name in RULES:
        return RULES[name]
    if func.is_view:
        return move
    if torch.Tag.pointwise in func.tags or torch.Tag.pointwise in _without_underscore(func):
        return combine
    return hold_all


def _without_underscore(func: OpOverload) -> list[torch.Tag]:
    """Tags of the operator that an in-place one is like."""
    name = name_of(func)
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    overload = getattr(packet, func._overloadname, None)
    return [] if overload is None else list(overload.tags)


def hold_all(call: Call) -> list[Labels]:
    """Of an operator that is not known, nothing can be said."""
    for tensor in call.tensors:
        call.hold(call.labels(tensor), f"what {call.name} does with them is not known")
    return []
