"""Which convolution and linear functions a forward calls: watched on the untouched base, on fake tensors.

This is what a plan is measured against, so it must not come from the tracer whose work it judges.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeGuard

from torch import Tensor, nn

from aimgraph.compiler.signature import Calls, Classified, FunctionCall, layer_paths
from aimgraph.copies import is_of_torch
from aimgraph.fake.faker import real_twins
from aimgraph.runtime.call_names import CallNames, WatchFunctions, first_input
from aimgraph.runtime.layer_kinds import AffineLayer, function_name, is_layer, kind_of
from aimgraph.runtime.layers import given_to, groups_of, stored_weight
from aimgraph.torch_private import current_function_mode, function_mode_popped


def names_in(
    root: nn.Module, kinds: Mapping[nn.Module, Classified], opaque_paths: frozenset[str] = frozenset()
) -> CallNames:
    """Names by the paths of `root`; those of its convolutions and linear layers whose calls count as theirs.

    Args:
        root: The module that runs.
        kinds: How each of its convolutions and linear layers can read.
        opaque_paths: Paths of modules that are kept as one call.
    """
    paths: dict[nn.Module, str] = {module: path for path, module in root.named_modules()}
    parameters = {id(parameter): name for name, parameter in root.named_parameters()}
    parts = dict(root.named_modules(remove_duplicate=False))
    for path, module in parts.items():
        for below, twin in real_twins(module):
            original = parts.get(".".join(filter(None, (path, below))))
            if original is None:  # a forward has put it there: what it calls belongs to the module around it
                continue
            paths[twin] = paths[original]
            own = dict(original.named_parameters(recurse=False))
            for name, parameter in twin.named_parameters(recurse=False):
                parameters[id(parameter)] = parameters.get(id(own.get(name)), "")
    return CallNames(root, paths, layer_paths(root, kinds), opaque_paths, parameters)


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
        names, features = self.names, given["input"]
        result = self.other(function, args, kwargs)
        if self._counts_itself(names.module):
            return result
        if name == names.path and name in names.layers:
            features = first_input(names.module, names.stack[-1].args, names.stack[-1].kwargs)
        self._note(name, function_name(function), features, given["weight"], int(given.get("groups", 1)), result)
        return result

    def _counts_itself(self, module: nn.Module) -> TypeGuard[AffineLayer]:
        """Whether the call of a module is what counts, not those of functions that it makes."""
        return is_layer(module) and kind_of(module).function is None and self.names.path in self.names.layers

    def _note(self, name: str, function: str, features: Tensor, weight: Tensor, groups: int, result: Tensor) -> None:
        names = self.names
        call = FunctionCall(
            function,
            tuple(features.shape),
            tuple(weight.shape),
            names.parameters.get(id(weight), ""),
            groups,
            weight.dtype,
            weight.device,
            names.opaque,
            names.hidden[-1] if names.hidden else "",
            tuple(result.shape),
        )
        self.calls.made.setdefault(name, []).append(call)
        self.calls.callers.add(names.path)

    def other(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make a call that is not noted."""
        return self._run(function, args, kwargs, function)

    def module_called(self, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make the call of a module, and note that of a layer that stands for no function."""
        if self._counts_itself(module):
            result, features = call(module, *args, **kwargs), first_input(module, args, kwargs)
            kind, weight = type(module).__name__, stored_weight(module)
            self._note(self.names.path, kind, features, weight, groups_of(module), result)
            return result
        ours = module in self.names.paths  # what a closure holds may be another's, and is seen operation by operation
        if is_layer(module) or not (ours and is_of_torch(module)) or current_function_mode() is not self:
            return call(module, *args, **kwargs)
        with function_mode_popped():  # which would see every size that is asked for
            return self._run(module, args, kwargs, partial(call, module))
