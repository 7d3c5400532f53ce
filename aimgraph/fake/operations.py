"""The operations that reach the tensors of a module, one by one."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from aimgraph.torch_private import FakeTensor, TorchDispatchMode, operator_named, tree_leaves

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
    """Lists the operations on anything that comes from inputs, parameters, buffers or random numbers.

    What a forward does to constants alone is done once, while tracing, and stands in no graph.

    Args:
        tensors: The parameters and buffers.
        inputs: The inputs by name, in any structure.
        seen: Called with the arguments of each operation, flat.
        values: Whether to list what a module gives that runs on real values in place of fake ones, too: it may have
            kept something since its last call that shows in these values alone.
    """

    active: ClassVar[list["Recorder"]] = []
    """Those that list now, the innermost one last."""

    def __init__(
        self,
        tensors: Iterable[Tensor],
        inputs: Any,
        seen: Callable[[list[Any]], None] | None = None,
        *,
        values: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen, self.values = seen, values
        self.operations: list[Operation] = []
        self.alive: list[Tensor] = []
        self.known: dict[int, Source] = {}
        self.note(list(tensors), HELD)
        self.held = len(self.alive)
        self.take(inputs)

    def __enter__(self) -> Self:
        self.active.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self.active.remove(self)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def ran(self, given: Any, output: Any, fakes: Any) -> None:
        """List a call of a module that ran on real values.

        Args:
            given: Its arguments.
            output: What it gave.
            fakes: What stands for that.
        """
        if not self.values:
            return
        found = [[leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)] for value in (given, output, fakes)]
        sources = tuple(self.known.get(id(leaf)) for leaf in found[0])
        sums = tuple(f"{leaf.double().sum().item():.3g}" for leaf in found[1] if not leaf.is_complex())  # sums may vary
        self.note(found[2], len(self.operations))
        self.operations.append(Operation(_VALUES, tuple(tuple(leaf.shape) for leaf in found[2]), sums, sources))

    def take(self, inputs: Any) -> None:
        """Watch what is done to these inputs; those of another forward of the same module are the same sources."""
        self.note([leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)], HELD, self.held)

    def since(self, start: int) -> list[Operation]:
        """The operations of the forward that begins at `start`, counted from its first; those before have numbers < -1.

        The operations of two forwards that do the same, and take nothing from those before, are equal.
        """
        if not start:
            return list(self.operations)
        return [operation.take(_counted_from, start) for operation in self.operations[start:]]

    def goes_on(self, start: int, stop: int, fresh: list[Operation]) -> bool:
        """Whether the forward whose operations end at `stop` goes on from what those before it have left.

        What comes from parameters and shapes alone may be kept between forwards: computing it again gives the same.
        Random numbers may not: drawn again, they are others.

        Args:
            start: Where they begin.
            stop: Where they end.
            fresh: What a first forward on such inputs does.
        """
        last = self.operations[start:stop]
        left = {source[0] for one in last for source in one.sources if source is not None}
        left = {number for number in left if HELD != number < start}
        if left:
            return not self._varying(self.operations[:start]).isdisjoint(left)
        return [operation[:3] for operation in fresh] != [operation[:3] for operation in last]

    def _varying(self, operations: list[Operation]) -> set[int]:
        """The numbers of those operations on whose results the values of an input, or random ones, have influence."""
        varying: set[int] = set()
        for number, (name, _, _, sources) in enumerate(operations):
            taken = [source for source in sources if source is not None]
            given = any(made in varying or (made == HELD and place >= self.held) for made, place in taken)
            if name.startswith(_BY_SHAPE) or not (given or (name != _VALUES and _is_drawn(operator_named(name)))):
                continue
            varying.add(number)
            written = sources[0] if is_in_place(name) else None
            while written is not None and written[0] != HELD and written[0] not in varying:
                varying.add(written[0])  # and what it may be a view of
                written = operations[written[0]].sources[0]
        return varying

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run = _batch_norm if func is _BATCH_NORM else func
        result = run(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return result
        given = leaves((args, kwargs))
        if self.seen is not None:
            self.seen(given)
        sources = tuple(self.known.get(id(leaf)) for leaf in given if isinstance(leaf, Tensor))
        if any(sources) or (_is_drawn(func) and torch.Generator not in map(type, given)):  # ours have generators
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


def is_in_place(name: str) -> bool:
    """Whether an operation overwrites its first argument, by its name: ``aten.add_.Tensor``."""
    return name.partition(".")[2].partition(".")[0].endswith("_")


@cache
def _is_drawn(operator: Any) -> bool:
    """Whether an operator gives random numbers: attention and recurrent layers have the tag, too, for their dropout."""
    name = str(operator)
    return torch.Tag.nondeterministic_seeded in operator.tags and not any(one in name for one in _WITH_DROPOUT)


_WITH_DROPOUT = ("attention", "lstm", "gru", "rnn")


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
    if not isinstance(given, _NESTED):
        return [given]
    found: list[Any] = []
    for item in given.values() if isinstance(given, dict) else given:
        if type(item) in _USUAL or not isinstance(item, _NESTED):
            found.append(item)
        else:
            found += leaves(item)
    return found


_USUAL = frozenset((FakeTensor, bool, int, float, str, type(None)))

_NESTED = (tuple, list, dict)
"""A tuple: this is asked for every argument of every operation, and a union of types would be made each time."""


_VALUES = "values"
"""Name of what stands for all operations of a module that runs on real values."""

_BY_SHAPE = ("aten.new_", "aten.empty_like", "aten.zeros_like", "aten.ones_like", "aten.full_like")
"""Operations that give the same for all values of their argument."""


def _counted_from(source: Source | None, start: int) -> Source | None:
    if source is None or source[0] == HELD:
        return source
    number, place = source
    return (number - start if number >= start else number - start - 1), place


_CONSTANTS = frozenset((bool, int, float, complex, str, torch.dtype))
