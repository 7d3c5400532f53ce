"""Seeing the functions of torch that a forward calls: some fail before any operation does."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from aimgraph.torch_private import dispatch_modes_disabled, tree_leaves
from aimgraph.widen.flow import Flow, Step


@dataclass(frozen=True)
class FunctionStep:
    """One call of a function of torch.

    Attributes:
        step: What it was given, and gave.
        end: How many operations there were after it.
    """

    step: Step
    end: int


class Functions(TorchFunctionMode):
    """Lists the outermost functions of torch that are called with tensors, beside a flow.

    Args:
        flow: Follows the operations.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.steps: list[FunctionStep] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and note what it gave."""
        result = func(*args, **(kwargs or {}))
        with dispatch_modes_disabled():
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            inputs = tuple(one for tensor in given for one in self.flow.labels(tensor))
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            gave = tuple((one.shape, one.dtype, one.device, self.flow.labels(one)) for one in made)
        plain = isinstance(result, Tensor)
        self.steps.append(FunctionStep(Step(name_of_function(func), inputs, gave, not plain), self.flow.count))
        return result


def name_of_function(func: Any) -> str:
    """How a function of torch is called in words."""
    return str(resolve_name(func) or getattr(func, "__name__", type(func).__name__))
