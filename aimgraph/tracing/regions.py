"""Grad modes and autocast inside a forward become nodes of its graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from aimgraph.runtime.regions import CONTEXTS, enter_context, leave_context
from aimgraph.torch_private import autocast_options, patched
from aimgraph.tracing.proxies import LayerProxy
from aimgraph.tracing.values import ValueTracer


@contextmanager
def contexts_recorded(tracer: ValueTracer) -> Iterator[None]:
    """Make entering and leaving a grad mode or autocast nodes of the graph."""
    recorder = _ContextRecorder(tracer)
    kinds = torch.no_grad, torch.enable_grad, torch.inference_mode, torch.autocast
    with patched(
        (torch.set_grad_enabled, "__init__", recorder.set),
        *((kind, "__init__", recorder.make) for kind in kinds),
        *((kind, "__enter__", recorder.enter) for kind in kinds),
        *((kind, "__exit__", recorder.leave) for kind in (torch.set_grad_enabled, *kinds)),
    ):
        yield


class _ContextRecorder:
    """Wraps the methods of torch's context managers; what these do among themselves is not recorded."""

    def __init__(self, tracer: ValueTracer) -> None:
        self.tracer = tracer
        self.busy = False
        self.given: dict[int, tuple[Any, Any]] = {}
        self.entered: dict[int, list[fx.Proxy]] = {}
        self.alive: list[Any] = []

    def make(self, original: Any) -> Any:
        """Remember the arguments; torch's own constructor gets values for proxies."""

        def init(context: Any, *args: Any, **kwargs: Any) -> None:
            self.alive.append(context)
            self.given[id(context)] = (args, kwargs)
            concrete: Any = fx.node.map_aggregate((args, kwargs), self._concrete)
            with self._quietly():
                original(context, *concrete[0], **concrete[1])

        return init

    def set(self, original: Any) -> Any:
        """``torch.set_grad_enabled(flag)`` works from its construction on."""

        def init(context: Any, *args: Any, **kwargs: Any) -> None:
            record = self._records()
            original(context, *args, **kwargs)
            if record:
                self.alive.append(context)
                self._enter(context, "set_grad_enabled", args, kwargs)

        return init

    def enter(self, original: Any) -> Any:
        """A node, then torch's own ``__enter__``."""

        def call(context: Any) -> Any:
            if self._records():
                self._enter(context, type(context).__name__, *self.given.get(id(context), _made_with(context)))
            with self._quietly():
                return original(context)

        return call

    def leave(self, original: Any) -> Any:
        """Torch's own ``__exit__``, then a node: what was entered last is left first."""

        def call(context: Any, *error: Any) -> Any:
            with self._quietly():
                result = original(context, *error)
            if self._records() and self.entered.get(id(context)):
                token = self.entered[id(context)].pop()
                self.tracer.create_proxy("call_function", leave_context, (token,), {})
            return result

        return call

    def _enter(self, context: Any, name: str, args: Any, kwargs: Any) -> None:
        kept = next((key for key, kind in CONTEXTS.items() if isinstance(context, kind)), name)  # type: ignore[arg-type]
        token = self.tracer.create_proxy("call_function", enter_context, (kept, *args), kwargs)
        self.entered.setdefault(id(context), []).append(token)

    def _records(self) -> bool:
        return not self.busy and not self.tracer.aside

    def _concrete(self, value: Any) -> Any:
        return self.tracer.value_of(value, "the value") if isinstance(value, LayerProxy) else value

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before


def _made_with(context: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a context that was made before the forward, as a decorator or an attribute."""
    if isinstance(context, torch.autocast):
        return (context.device,), autocast_options(context)
    return ((context.mode,), {}) if isinstance(context, torch.inference_mode | torch.set_grad_enabled) else ((), {})


def drop_empty_contexts(graph: fx.Graph) -> None:
    """Remove contexts that were left as soon as they were entered."""
    for node in list(graph.nodes):
        entered = node.args[0] if node.target is leave_context else None
        if isinstance(entered, fx.Node) and node.prev is entered:
            graph.erase_node(node)
            graph.erase_node(entered)
