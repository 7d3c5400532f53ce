"""The inputs of a graph: one per argument of the forward, with the defaults it had."""

from typing import Any

from torch import fx

from aimgraph.inputs.arguments import NOT_GIVEN, PRINTED, Argument
from aimgraph.runtime.guards import constant


def placeholder_default(arguments: list[Argument], index: int) -> tuple[Any, ...]:
    """The default of the input that stands for an argument, in a tuple, or nothing.

    Python wants a default behind another, and printed code one that can be printed.
    """
    default = arguments[index].default
    if default and not isinstance(default[0], PRINTED):
        return (NOT_GIVEN,)
    return (NOT_GIVEN,) if not default and any(before.default for before in arguments[:index]) else default


def check_placeholder(graph: fx.Graph, node: fx.Node, argument: Argument) -> None:
    """Refuse, at every call, another value of a constant, and a missing one without a default."""
    if argument.constant or NOT_GIVEN in node.args:
        printed = isinstance(argument.value, PRINTED)
        value: Any = argument.value if argument.constant and printed else NOT_GIVEN
        graph.call_function(constant, (node, argument.name, value, argument.constant))
