"""Calls of convolution and linear functions, seen and named while a forward runs.

A call is named after the layer that makes it, or, where a forward calls the function itself, after
the innermost module and the number of the call: ``blocks.0.attn.linear_1``.
"""

import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from aimgraph.runtime.layers import FUNCTIONS

Stack: TypeAlias = list[tuple[nn.Module | None, Counter[str]]]


class CallNames:
    """Names calls of functions by the module whose forward makes them; counts from 0 in every forward.

    Args:
        root: The module that runs first.
        paths: Module -> path, the root's among them.
        layers: Paths of layers, whose first call has their own name.
    """

    def __init__(self, root: nn.Module, paths: Mapping[nn.Module, str], layers: Set[str]) -> None:
        self.paths, self.layers = paths, layers
        self.taken = frozenset(paths.values())
        self.stack: Stack = [(root, Counter())]

    @contextmanager
    def inside(self, module: nn.Module | None) -> Iterator[None]:
        """While `module` runs its forward; None while something does whose calls have no name."""
        self.stack.append((module, Counter()))
        try:
            yield
        finally:
            self.stack.pop()

    @property
    def module(self) -> nn.Module | None:
        """The innermost module that runs."""
        return self.stack[-1][0]

    def now(self) -> Stack:
        """The modules that run, with the calls they have made, to go on from later."""
        return [(module, counts.copy()) for module, counts in self.stack]

    def go_on(self, then: Stack) -> None:
        """Go on from what `now` gave."""
        self.stack = [(module, counts.copy()) for module, counts in then]

    def name(self, function: Callable[..., Any]) -> str:
        """The name of the next call of `function`; empty where it has none."""
        module, counts = self.stack[-1]
        if module is None:
            return ""
        path = self.paths.get(module, "")
        kind = function.__name__
        number = counts[kind]
        counts[kind] += 1
        if path in self.layers and number == 0:
            return path
        name = ".".join(filter(None, (path, f"{kind}_{number}")))
        while name in self.taken:
            name += "_"
        return name


class WatchFunctions(TorchFunctionMode):
    """Sees every call of a convolution or linear function, those inside torch's own composite functions, too.

    Args:
        names: Names the calls.
    """

    def __init__(self, names: CallNames) -> None:
        super().__init__()
        self.names = names

    def called(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of one such call."""
        return function(*args, **kwargs)

    def other(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of a call of any other function."""
        return function(*args, **kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COMPOSITE:
            with self._resumed():
                return opened(func)(*args, **(kwargs or {}))
        if func in FUNCTIONS:
            return self.called(self.names.name(func), func, args, kwargs or {})
        return self.other(func, args, kwargs or {})

    @contextmanager
    def _resumed(self) -> Iterator[None]:
        """Watch on inside a function that this mode handles."""
        super().__enter__()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]


COMPOSITE: tuple[Callable[..., Any], ...] = (F.multi_head_attention_forward,)
"""Functions written in Python that call linear functions; a mode or a proxy sees them as one."""


def opened(function: Any) -> Callable[..., Any]:
    """A `COMPOSITE` function that runs its own body, even on stand-ins or inside a mode."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    body = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body
