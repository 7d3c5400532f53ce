"""Does a graph do what the forward does? Operation by operation, on fake tensors.

A forward may decide something that a stand-in answers wrongly and silently: the type of an input,
whether a dictionary has a key. The operations that really reach the tensors tell.
"""

from collections.abc import Callable
from itertools import chain, zip_longest

from torch import nn

from aimgraph.errors import TraceError
from aimgraph.fake.operations import HELD, Operation, Source
from aimgraph.tracing.observe import Observed


def check_faithful(
    root: nn.Module,
    traced: dict[str, list[Operation]],
    observed: dict[str, Observed],
    batch: int,
    line: Callable[[str, int], str],
    *,
    sources: bool = True,
) -> None:
    """Compare what each graph does with what the forward did on the same inputs.

    Args:
        root: The module that was traced.
        traced: Mode -> what the nodes of its graph do.
        observed: Mode -> what the forward did; at least the modes above.
        batch: The batch size.
        line: Of a mode and the number of an operation, the line of the forward that does it.
        sources: Whether the operations have to take the same tensors.

    Raises:
        TraceError: They apply different operations to the inputs, parameters and buffers.
    """
    held = [name for name, _ in chain(root.named_parameters(), root.named_buffers())]  # in the order of `Faker.tensors`
    for mode, operations in traced.items():
        for number, (one, other) in enumerate(zip_longest(observed[mode].operations, operations)):
            if one != other and (sources or one is None or other is None or one[:3] != other[:3]):
                forward, graph = _name(one, held), _name(other, held)
                place = f"at {line(mode, number)}" if one is not None else f"after {line(mode, number - 1)}"
                raise TraceError(
                    f"the {mode} graph of {type(root).__name__} does not do what its forward does at batch size "
                    f"{batch}: operation {number} is {forward} in the forward, {place}, and {graph} in the graph. What "
                    "decides there goes another way while it is traced, or at another batch size: ask for shapes and "
                    "flags, or move it into a submodule without conv or linear layers"
                )


def _name(operation: Operation | None, held: list[str]) -> str:
    if operation is None:
        return "missing"
    given = ", ".join([*(_source(one, held) for one in operation.sources), *map(repr, operation.constants)])
    return f"{operation.name}({given}) -> {', '.join(str(list(shape)) for shape in operation.shapes)}"


def _source(source: Source | None, held: list[str]) -> str:
    """A tensor in words, in a few."""
    if source is None:
        return "a constant"
    number, place = source
    if number != HELD:
        return f"result of {number}"
    return held[place] if place < len(held) else f"input {place - len(held)}"
