"""Calls of convolution and linear functions, seen and named while a forward runs.

A call is named after the layer that makes it, or, where a forward calls the function itself, after
the innermost module and the number of the call: ``blocks.0.attn.linear_1``.
"""

import inspect
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from aimgraph.runtime.layer_kinds import FUNCTIONS, function_name
from aimgraph.torch_private import patched


@dataclass
class Frame:
    """A module whose forward runs.

    Attributes:
        module: The module.
        counts: How often it has called each function so far.
        args: What it was called with.
        kwargs: What it was called with.
    """

    module: nn.Module
    counts: Counter[str]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class CallNames:
    """Names calls of functions by the module whose forward makes them; counts from 0 in every forward.

    A module without a path is no part of the model: what it calls belongs to the module that calls it.

    Args:
        root: The module that runs first.
        paths: Module -> path, the root's among them.
        layers: Paths of layers, whose first call has their own name.
        opaque_paths: Paths of modules that are kept as one call; `OPAQUE_BASE` for the root itself.
        parameters: Identity of a parameter -> its name.
    """

    def __init__(
        self,
        root: nn.Module,
        paths: Mapping[nn.Module, str],
        layers: Set[str],
        opaque_paths: Set[str] = frozenset(),
        parameters: Mapping[int, str] | None = None,
    ) -> None:
        self.paths, self.layers, self.opaque_paths = paths, layers, opaque_paths
        self.parameters = parameters or {}
        self.taken = frozenset(paths.values())
        self.stack = [Frame(root, Counter())]
        self.opaque: tuple[str, int] | None = (OPAQUE_BASE, 0) if OPAQUE_BASE in opaque_paths else None
        self.turns: Counter[str] = Counter()
        self.hidden: list[str] = []

    @contextmanager
    def inside(self, module: nn.Module, args: tuple[Any, ...] = (), kwargs: Any = None) -> Iterator[None]:
        """While `module` runs on these arguments."""
        path = self.paths.get(module)
        if path is None:
            yield
            return
        before = self.opaque
        if before is None and path in self.opaque_paths:
            self.opaque = (path, self.turns[path])
            self.turns[path] += 1
        self.stack.append(Frame(module, Counter(), args, kwargs or {}))
        try:
            yield
        finally:
            self.stack.pop()
            self.opaque = before

    @contextmanager
    def inside_function(self, name: str) -> Iterator[None]:
        """While the forward of a `torch.autograd.Function` runs, whose backward is its own."""
        self.hidden.append(name)
        try:
            yield
        finally:
            self.hidden.pop()

    @property
    def module(self) -> nn.Module:
        """The innermost module that runs."""
        return self.stack[-1].module

    @property
    def path(self) -> str:
        """Its path."""
        return self.paths.get(self.module, "")

    def now(self) -> list[Frame]:
        """The modules that run, with the calls they have made, to go on from later."""
        return [replace(frame, counts=frame.counts.copy()) for frame in self.stack]

    def go_on(self, then: list[Frame]) -> None:
        """Go on from what `now` gave."""
        self.stack = [replace(frame, counts=frame.counts.copy()) for frame in then]

    def name(self, function: Callable[..., Any]) -> str:
        """The name of the next call of `function`."""
        counts, path, kind = self.stack[-1].counts, self.path, function_name(function)
        number = counts[kind]
        counts[kind] += 1
        if path in self.layers and number == 0:
            return path
        name = ".".join(filter(None, (path, f"{kind}_{number}")))
        while name in self.taken:
            name += "_"
        return name


OPAQUE_BASE = "aim._whole"
"""Path of the stand-in for the base itself, where its own forward is the one that can't be traced."""


class WatchFunctions(TorchFunctionMode):
    """Sees every call of a convolution or linear function, those inside torch's own composite functions, too.

    It knows the modules that run by the calls of modules in the thread that it was entered in.

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

    def module_called(self, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of a call of `module`, which `call` makes."""
        return call(module, *args, **kwargs)

    def raised(self, module: nn.Module) -> None:
        """Called where the forward of `module` raises an error."""

    def __enter__(self) -> Self:
        call_module, apply_function = nn.Module.__call__, vars(torch.autograd.Function)["apply"]
        names, thread = self.names, threading.get_ident()

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return call_module(module, *args, **kwargs)
            with names.inside(module, args, kwargs):
                try:
                    return self.module_called(module, call_module, args, kwargs)
                except Exception:
                    self.raised(module)
                    raise

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or cls.__module__.startswith("torch."):
                return apply_function.__get__(None, cls)(*args, **kwargs)
            with names.inside_function(cls.__name__):
                return apply_function.__get__(None, cls)(*args, **kwargs)

        self._patches = patched(
            (nn.Module, "__call__", lambda _: call), (torch.autograd.Function, "apply", lambda _: classmethod(apply))
        )
        self._patches.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._patches.__exit__(None, None, None)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

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


def first_input(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The input that a layer is called with, whatever its own forward calls it."""
    return args[0] if args else kwargs[input_name(layer)]


def input_name(layer: nn.Module) -> str:
    """What the forward of a layer's class calls its input."""
    return list(inspect.signature(type(layer).forward).parameters)[1]


COMPOSITE: tuple[Callable[..., Any], ...] = (F.multi_head_attention_forward,)
"""Functions written in Python that call linear functions; a mode or a proxy sees them as one."""


def opened(function: Any) -> Callable[..., Any]:
    """A `COMPOSITE` function that runs its own body, even on stand-ins or inside a mode."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    body = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body
