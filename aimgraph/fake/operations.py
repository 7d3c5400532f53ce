"""The operations that reach the tensors of a module, one by one."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aimgraph.torch_private import TorchDispatchMode, tree_leaves

Source = tuple[int, int]
"""Which tensor: the number of the operation that gave it and its place there; `HELD` and its place among the tensors
of the module and the inputs."""


HELD = -1


class Operation(NamedTuple):
    """One operation on tensors.

    Attributes:
        name: Of the operation.
        shapes: That it gave.
        constants: The numbers, flags and names among its arguments.
        sources: The tensors among its arguments; None for a constant.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[Any, ...]
    sources: tuple[Source | None, ...]

    def take(self, name: Callable[..., Source | None], *args: Any) -> "Operation":
        """The operation with its sources named otherwise."""
        return Operation(self.name, self.shapes, self.constants, tuple(name(one, *args) for one in self.sources))


class Recorder(TorchDispatchMode):
    """Lists the operations on anything that comes from inputs, parameters or buffers.

    What a forward does to constants alone is done once, while tracing, and stands in no graph.

    Args:
        tensors: The parameters and buffers.
        inputs: The inputs by name, in any structure.
        seen: Called with the arguments of each operation, flat.
    """

    def __init__(self, tensors: Iterable[Tensor], inputs: Any, seen: Callable[[list[Any]], None] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen
        self.operations: list[Operation] = []
        self.alive: list[Tensor] = []
        self.known: dict[int, Source] = {}
        self.note(list(tensors), HELD)
        self.held = len(self.alive)
        self.take(inputs)

    def take(self, inputs: Any) -> None:
        """Watch what is done to these inputs; those of another forward of the same module are the same sources."""
        self.note([leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)], HELD, self.held)

    def goes_on(self, start: int) -> bool:
        """Whether the forward whose operations begin at `start` goes on from what the one before has left.

        What comes from parameters alone may be kept between forwards: computing it again gives the same.
        """
        first, second = self.operations[:start], self.operations[start:]
        varying: set[int] = set()  # operations on which an input has influence
        for number, operation in enumerate(first):
            sources = [source for source in operation.sources if source is not None]
            if any(made in varying or (made == HELD and place >= self.held) for made, place in sources):
                varying.add(number)
        left = {source[0] for operation in second for source in operation.sources if source is not None}
        left = {number for number in left if HELD != number < start}
        if left:
            return not varying.isdisjoint(left)
        return [operation[:3] for operation in first] != [operation[:3] for operation in second]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run = _batch_norm if func is _BATCH_NORM else func
        result = run(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return result
        given = leaves((args, kwargs))
        if self.seen is not None:
            self.seen(given)
        sources = tuple(self.known.get(id(leaf)) for leaf in given if isinstance(leaf, Tensor))
        if any(sources):
            made = [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]
            self.note(made, len(self.operations))
            constants = tuple(leaf for leaf in given if type(leaf) in _CONSTANTS)
            shapes = tuple(tuple(tensor.shape) for tensor in made)
            self.operations.append(Operation(str(func), shapes, constants, sources))
        return result

    def note(self, made: list[Tensor], number: int, first: int = 0) -> None:
        """Watch what is done to the tensors that an operation gave, too; one overwritten in place keeps its source."""
        self.alive += made
        for place, tensor in enumerate(made, first):
            self.known.setdefault(id(tensor), (number, place))


_BATCH_NORM: Any = torch.ops.aten.native_batch_norm.default


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    train: bool,
    *numbers: float,
) -> Any:
    """What batch normalisation gives on fake tensors: torch composes it of thirty operations, a tenth of a transform.

    Shapes that don't fit are left to torch, which says so.
    """
    held = [one for one in (weight, bias, mean, var) if one is not None]
    fits = x.dim() > 1 and all(one.shape == x.shape[1:2] for one in held)
    if not fits or not (train or (mean is not None and var is not None)):
        return _BATCH_NORM(x, weight, bias, mean, var, train, *numbers)
    for statistic in (mean, var) if train else ():
        if statistic is not None:
            statistic.add_(0)  # overwritten
    saved = x.new_empty(x.shape[1] if train else 0)
    return torch.empty_like(x), saved, torch.empty_like(saved)


def leaves(given: Any) -> list[Any]:
    """What stands in tuples, lists and dicts, as operations take them: a fraction of the time of `tree_leaves`."""
    found: list[Any] = []
    for item in given.values() if isinstance(given, dict) else given if isinstance(given, tuple | list) else (given,):
        found += leaves(item) if isinstance(item, tuple | list | dict) else (item,)
    return found


_CONSTANTS = frozenset((bool, int, float, complex, str, torch.dtype))
