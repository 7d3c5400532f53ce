"""Functions of Python and torch that behave otherwise while a forward is traced."""

import builtins
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.attention
from torch import Tensor, fx, nn

from aimgraph.errors import TraceError
from aimgraph.torch_private import CHECK, KERNEL_CHOICES, WRAPPED_FUNCTIONS, WRAPPED_METHODS, patched, tree_leaves
from aimgraph.tracing.proxies import LayerProxy
from aimgraph.tracing.values import PLAIN_ISINSTANCE, ValueTracer
from aimgraph.user_code import is_users


@contextmanager
def nothing_hidden() -> Iterator[None]:
    """Look into functions that were marked with ``torch.fx.wrap``: some of them call layers."""
    functions, methods = WRAPPED_FUNCTIONS, WRAPPED_METHODS
    kept = dict(functions), list(methods)
    functions.clear()
    methods.clear()
    try:
        yield
    finally:
        functions.update(kept[0])
        methods[:] = kept[1]


@contextmanager
def autograd_functions_refused() -> Iterator[None]:
    """A graph would keep the forward of a `torch.autograd.Function`, and lose its backward."""

    def refusing(original: Any) -> Any:
        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
                raise TraceError(f"it calls {cls.__name__}, whose own backward a graph does not keep")
            return original.__get__(None, cls)(*args, **kwargs)

        return classmethod(apply)

    with patched((torch.autograd.Function, "apply", refusing)):
        yield


@contextmanager
def posing() -> Iterator[None]:
    """Let ``isinstance(x, Tensor)`` decide on a proxy what it decides on the value.

    In Python code only: torch's own C++ asks the same question, and takes what says yes for a tensor in memory.
    """

    def asked(value: Any, kinds: Any) -> bool:
        if PLAIN_ISINSTANCE(value, kinds):
            return True
        return PLAIN_ISINSTANCE(value, LayerProxy) and PLAIN_ISINSTANCE(value.tracer.known(value), kinds)

    with patched((builtins, "isinstance", lambda _: asked)):
        yield


@contextmanager
def functions_on_proxies(tracer: ValueTracer) -> Iterator[None]:
    """Let functions take proxies that would ask for their values, or look for them in tensors and tuples only."""

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            sizes = [value for value in args if isinstance(value, fx.Proxy)]
            if sizes and not tracer.aside and not any(isinstance(tracer.known(size), Tensor) for size in sizes):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call

    def asking(function: Callable[..., Any]) -> Callable[..., Any]:
        def ask() -> Any:
            # test_contexts_made_before_the_forward: torch's own no_grad asks, too
            if not tracer.aside and is_users(sys._getframe(1).f_code.co_filename):
                raise TraceError("the forward asks whether gradients are recorded, which is known at a call only")
            return function()

        return ask

    with patched(
        (torch, CHECK, _checking),
        (torch, "is_grad_enabled", asking),
        *((torch, name, recording) for name in ("empty", "ones", "rand", "randn", "zeros")),
        *((torch, name, recording) for name in ("finfo", "iinfo", "promote_types")),
        *((math, name, recording) for name in ("ceil", "exp", "floor", "log", "log2", "pow", "sqrt", "trunc")),
    ):
        yield


def _checking(function: Callable[..., Any]) -> Callable[..., Any]:
    def check(error: type[Exception], condition: Any, message: Any) -> None:
        function(error, bool(condition) if isinstance(condition, fx.Proxy) else condition, message)

    return check


@contextmanager
def random_states_refused(tracer: ValueTracer) -> Iterator[None]:
    """Random states and choices of kernels that a forward sets: a graph would not, and compute something else."""

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            if not tracer.aside and is_users(sys._getframe(1).f_code.co_filename):
                raise TraceError(f"the forward calls torch.{function.__name__}, and a graph keeps no random states")
            return function(*args, **kwargs)

        return refuse

    def choosing(function: Callable[..., Any]) -> Callable[..., Any]:
        def choose(*args: Any, **kwargs: Any) -> Any:
            if not tracer.aside:
                raise TraceError("the forward chooses a kernel by torch.nn.attention.sdpa_kernel, which a graph loses")
            return function(*args, **kwargs)

        return choose

    names = ("manual_seed", "seed", "set_rng_state")
    with patched(
        *((module, name, refusing) for module in (torch, torch.random) for name in names),
        (torch.random, "fork_rng", refusing),
        *((torch.nn.attention, name, choosing) for name in KERNEL_CHOICES),
    ):
        yield


@contextmanager
def parameters_as_proxies(tracer: ValueTracer) -> Iterator[None]:
    """Let a forward that goes through parameters have those of a call: ``next(self.parameters()).dtype`` may change."""
    held: dict[str, Any] = {}

    def standing_in(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def tensors(module: nn.Module, *args: Any, **kwargs: Any) -> Iterator[Any]:
            found = function(module, *args, **kwargs)
            if tracer.aside or not is_users(sys._getframe(1).f_code.co_filename):
                return found
            return (_stand_in(tracer, item, held) for item in list(found))

        return tensors

    names = ("parameters", "buffers", "named_parameters", "named_buffers")
    with patched(*((nn.Module, name, standing_in) for name in names)):
        yield


def _stand_in(tracer: ValueTracer, item: Any, held: dict[str, Any]) -> Any:
    """The proxy of a parameter or buffer, or of the one in (name, tensor)."""
    if isinstance(item, tuple):
        return item[0], tracer.getattr(item[0], item[1], held)
    return tracer.getattr("", item, held)
