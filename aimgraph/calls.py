"""Which convolution and linear functions a forward calls: watched on the untouched base, on fake tensors.

This is what a plan is measured against, so it must not come from the tracer whose work it judges.
A call is named after the layer that makes it, or, where a forward calls the function itself, after
the innermost module and the number of the call: ``blocks.0.attn.linear_1``.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from aimgraph.fakes import real_twins
from aimgraph.layers import FUNCTIONS, LayerKind


class CallNames:
    """Names calls of functions by the module whose forward makes them; counts from 0 in every forward.

    Args:
        root: The module whose submodules' paths are used.
        kinds: Its convolutions and linear layers.
    """

    def __init__(self, root: nn.Module, kinds: Mapping[nn.Module, LayerKind]) -> None:
        self.paths: dict[nn.Module, str] = {module: path for path, module in root.named_modules()}
        self.taken = set(self.paths.values())
        self.layers = {self.paths[module] for module, kind in kinds.items() if not kind.enter}
        for path, module in root.named_modules():
            for below, twin in real_twins(module):
                self.paths[twin] = ".".join(filter(None, (path, below)))
        self.stack: list[tuple[nn.Module, Counter[str]]] = [(root, Counter())]

    @contextmanager
    def inside(self, module: nn.Module) -> Iterator[None]:
        """While `module` runs its forward."""
        self.stack.append((module, Counter()))
        try:
            yield
        finally:
            self.stack.pop()

    @property
    def module(self) -> nn.Module:
        """The innermost module that runs."""
        return self.stack[-1][0]

    def name(self, function: Callable[..., Any]) -> str:
        """The name of the next call of `function`."""
        module, counts = self.stack[-1]
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


@dataclass
class Calls:
    """The calls that one forward makes.

    Attributes:
        counts: Name of a call -> how often it is made.
        functions: Name of a call -> name of the function.
        callers: Modules that call such a function themselves.
        shapes: Name of a call -> the shape of its input, each time.
        failed: The innermost module that raised an error, if one did.
    """

    counts: Counter[str] = field(default_factory=Counter)
    functions: dict[str, str] = field(default_factory=dict)
    callers: set[str] = field(default_factory=set)
    shapes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    failed: str | None = None


class WatchCalls(TorchFunctionMode):
    """Notes every call of a convolution or linear function while a module runs.

    Args:
        names: Names the calls.
        run: Calls a function with positional and keyword arguments.
    """

    def __init__(self, names: CallNames, run: Callable[[Callable[..., Any], Any, Any], Any] | None = None) -> None:
        super().__init__()
        self.names = names
        self._run = run or (lambda function, args, kwargs: function(*args, **kwargs))
        self.calls = Calls()

    def __enter__(self) -> "WatchCalls":
        self._call = nn.Module.__call__
        original, names = self._call, self.names

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with names.inside(module):
                try:
                    return original(module, *args, **kwargs)
                except Exception:
                    if self.calls.failed is None:
                        self.calls.failed = names.paths.get(module)
                    raise

        nn.Module.__call__ = call  # type: ignore[method-assign]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        nn.Module.__call__ = self._call  # type: ignore[method-assign]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COMPOSITE:
            with opened(func), self._resumed():
                return func(*args, **(kwargs or {}))
        if func in FUNCTIONS:
            name = self.names.name(func)
            self.calls.counts[name] += 1
            self.calls.functions[name] = func.__name__
            features = args[0] if args else (kwargs or {})["input"]
            self.calls.shapes.setdefault(name, []).append(tuple(features.shape))
            self.calls.callers.add(self.names.paths.get(self.names.module, ""))
        return self._run(func, args, kwargs or {})

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


@contextmanager
def opened(function: Callable[..., Any]) -> Iterator[None]:
    """Let a `COMPOSITE` function run its own body, even on stand-ins or inside a mode."""
    module = function.__globals__
    asked = module["has_torch_function"]
    module["has_torch_function"] = lambda _: False
    try:
        yield
    finally:
        module["has_torch_function"] = asked


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep torch's attention from its fused inference path, which hides its linear layers and rounds differently."""
    backend: Any = torch.backends.mha
    before = backend.get_fastpath_enabled()
    backend.set_fastpath_enabled(False)
    try:
        yield
    finally:
        backend.set_fastpath_enabled(before)
