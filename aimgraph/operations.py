"""The operations that reach the tensors of a module, one by one."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Operation = tuple[str, tuple[tuple[int, ...], ...]]
"""Name of an operation, and the shapes that it gave."""


class Recorder(TorchDispatchMode):
    """Lists the operations on anything that comes from inputs, parameters or buffers.

    What a forward does to constants alone is done once, while tracing, and stands in no graph.
    """

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.alive = [
            *module.parameters(),
            *module.buffers(),
            *(t for t in tree_leaves(inputs) if isinstance(t, Tensor)),
        ]
        self.known = {id(tensor) for tensor in self.alive}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.ops.prim.device.default and any(
            id(leaf) in self.known for leaf in _leaves(args) + _leaves(kwargs)
        ):
            made = self.note(result)
            self.operations.append((str(func), tuple(tuple(tensor.shape) for tensor in made)))
        return result

    def note(self, value: Any) -> list[Tensor]:
        """Watch what is done to the tensors in `value`, too."""
        made = [leaf for leaf in _leaves(value) if isinstance(leaf, Tensor)]
        self.alive += made
        self.known.update(map(id, made))
        return made


def _leaves(given: Any) -> list[Any]:
    """What stands in a tensor's place: a fraction of the time of `tree_leaves` for the usual flat arguments."""
    if isinstance(given, Tensor):
        return [given]
    if isinstance(given, tuple | list) and not any(isinstance(item, tuple | list | dict) for item in given):
        return list(given)
    return tree_leaves(given) if given else []
