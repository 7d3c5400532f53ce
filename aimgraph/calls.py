"""Which convolution and linear functions a forward calls: watched on the untouched base, on fake tensors.

This is what a plan is measured against, so it must not come from the tracer whose work it judges.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode, _pop_mode_temporarily

from aimgraph.copies import is_of_torch
from aimgraph.fakes import real_twins
from aimgraph.layers import LayerKind, is_layer
from aimgraph.runtime.layers import given_to
from aimgraph.runtime.watch import CallNames, WatchFunctions, first_input


def names_in(root: nn.Module, kinds: Mapping[nn.Module, LayerKind], leaves: frozenset[str] = frozenset()) -> CallNames:
    """Names by the paths of `root`; those of its convolutions and linear layers whose calls count as theirs.

    Args:
        root: The module that runs.
        kinds: The kind of each of its convolutions and linear layers.
        leaves: Paths of modules that are kept as one call.
    """
    paths: dict[nn.Module, str] = {module: path for path, module in root.named_modules()}
    parameters = {id(parameter): name for name, parameter in root.named_parameters()}
    for path, module in root.named_modules(remove_duplicate=False):
        for below, twin in real_twins(module):
            original = root.get_submodule(".".join(filter(None, (path, below))))
            paths[twin] = paths[original]
            own = dict(original.named_parameters(recurse=False))
            for name, parameter in twin.named_parameters(recurse=False):
                parameters[id(parameter)] = parameters.get(id(own.get(name)), "")
    return CallNames(root, paths, layer_paths(root, kinds), leaves, parameters)


def layer_paths(root: nn.Module, kinds: Mapping[nn.Module, LayerKind]) -> frozenset[str]:
    """Paths of the convolutions and linear layers of `root` whose calls count as theirs: those that are not entered."""
    return frozenset(path for path, part in root.named_modules() if part in kinds and not kinds[part].enter)


@dataclass(frozen=True)
class FunctionCall:
    """One call of a convolution or linear function.

    Attributes:
        function: Its name in `torch.nn.functional`.
        input: Shape of the features; of a layer's call, what the layer was given.
        weight: Shape of the weight.
        parameter: Name of the parameter that the weight is; empty if it is computed.
        groups: g; 1 for a linear function.
        dtype: Of the weight.
        device: Of the weight.
        leaf: The module that is kept as one call in which it is made, and the number of that module's call.
        hidden: The `torch.autograd.Function` in whose forward it is made; empty if there is none.
        output: Shape of what it gives.
    """

    function: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    parameter: str
    groups: int
    dtype: torch.dtype
    device: torch.device
    leaf: tuple[str, int] | None
    hidden: str
    output: tuple[int, ...]


@dataclass
class Calls:
    """The calls that one forward makes.

    Attributes:
        made: Name of a call -> the call, each time.
        callers: Modules that call such a function themselves.
        failed: The innermost module that raised an error, if one did.
    """

    made: dict[str, list[FunctionCall]] = field(default_factory=dict)
    callers: set[str] = field(default_factory=set)
    failed: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Name of a call -> how often it is made."""
        return {name: len(calls) for name, calls in self.made.items()}


class WatchCalls(WatchFunctions):
    """Notes every call of a convolution or linear function while a module runs.

    Args:
        names: Names the calls.
        run: Gives the result of a function, or of a layer of torch that holds no other and calls no such function:
            of the function or layer, its positional and its keyword arguments, and what calls it with these.
    """

    def __init__(self, names: CallNames, run: Callable[..., Any] | None = None) -> None:
        super().__init__(names)
        self._run = run or (lambda target, args, kwargs, call: call(*args, **kwargs))
        self.calls = Calls()

    def raised(self, module: nn.Module) -> None:
        """Note the innermost module that raised an error."""
        if self.calls.failed is None:
            self.calls.failed = self.names.paths.get(module)

    def called(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make the call, and note it if it works."""
        given = given_to(function, args, kwargs)
        names, weight, features = self.names, given["weight"], given["input"]
        result = self.other(function, args, kwargs)
        if name == names.path and name in names.layers:
            features = first_input(names.module, names.stack[-1].args, names.stack[-1].kwargs)
        call = FunctionCall(
            function.__name__,
            tuple(features.shape),
            tuple(weight.shape),
            names.parameters.get(id(weight), ""),
            int(given.get("groups", 1)),
            weight.dtype,
            weight.device,
            names.leaf,
            names.hidden[-1] if names.hidden else "",
            tuple(result.shape),
        )
        self.calls.made.setdefault(name, []).append(call)
        self.calls.callers.add(names.path)
        return result

    def other(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make a call that is not noted."""
        return self._run(function, args, kwargs, function)

    def module_called(self, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make the call of a module."""
        if is_layer(module) or not is_of_torch(module) or _get_current_function_mode() is not self:
            return call(module, *args, **kwargs)
        with _pop_mode_temporarily():  # which would see every size that is asked for
            return self._run(module, args, kwargs, partial(call, module))
