"""The operations that reach the tensors of a module, one by one."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Operation = tuple[str, tuple[tuple[int, ...], ...], tuple[Any, ...]]
"""Name of an operation, the shapes that it gave, and the numbers, flags and names among its arguments."""


class Recorder(TorchDispatchMode):
    """Lists the operations on anything that comes from inputs, parameters or buffers.

    What a forward does to constants alone is done once, while tracing, and stands in no graph.

    Args:
        tensors: The parameters and buffers.
        inputs: The inputs, in any structure.
    """

    def __init__(self, tensors: Iterable[Tensor], inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.alive = [*tensors, *(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))]
        self.known = {id(tensor) for tensor in self.alive}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return result
        given = leaves(args) + leaves(kwargs)
        if any(id(leaf) in self.known for leaf in given):
            made = self.note(result)
            constants = tuple(leaf for leaf in given if type(leaf) in _CONSTANTS)
            self.operations.append((str(func), tuple(tuple(tensor.shape) for tensor in made), constants))
        return result

    def note(self, value: Any) -> list[Tensor]:
        """Watch what is done to the tensors in `value`, too."""
        made = [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
        self.alive += made
        self.known.update(map(id, made))
        return made


_CONSTANTS = frozenset((bool, int, float, complex, str, torch.dtype))


def leaves(given: Any) -> list[Any]:
    """What stands in tuples, lists and dicts: all that an operation takes; a fraction of the time of `tree_leaves`."""
    if isinstance(given, dict):
        given = given.values()
    elif not isinstance(given, tuple | list):
        return [given]
    found: list[Any] = []
    for item in given:
        if isinstance(item, tuple | list | dict):
            found += leaves(item)
        else:
            found.append(item)
    return found
