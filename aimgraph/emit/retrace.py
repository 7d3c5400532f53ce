"""A transformed module that somebody traces again with torch.fx: quantisation, feature extraction, passes of others.

Its graph is there already, so it is copied into the new one, node by node: each of its calls stays one call.
"""

import inspect
from typing import Any, Never

from torch import fx, nn

from aimgraph.errors import ExportError
from aimgraph.torch_private import is_exporting

AROUND = ("_forward_", "_backward_", "_is_full_backward_hook")
"""What a module keeps about the hooks that run around its forward and its backward begins so."""


def tracer_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tracer whose stand-ins are among the arguments of a call; None if there are none."""
    return next((one.tracer for one in (*args, *kwargs.values()) if isinstance(one, fx.Proxy)), None)


def retraced(module: nn.Module, graph: fx.Graph, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call on stand-ins gives: the graph of a module, copied into that of the tracer.

    Args:
        module: Owns the graph's modules.
        graph: What runs.
        forward: What was compiled from it.
        args: Of the call.
        kwargs: Of the call.
    """
    given = inspect.signature(forward).bind(module, *args, **kwargs)
    given.apply_defaults()
    _, *inputs = given.arguments.values()
    return _Copy(module, graph, tracer_of(args, kwargs)).run(*inputs)


def refuse_script(module: nn.Module) -> Never:
    """Say what to do in place of ``torch.jit.script``, which compiles source code.

    Raises:
        ExportError: Always.
    """
    raise ExportError(
        f"torch.jit.script can't compile {type(module).__name__}: it compiles the source of forwards, and this one is "
        "chosen at each call; use torch.jit.trace(module.eval(), example_inputs), torch.export or aimgraph.export_onnx"
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs hooks of its own around its forward."""
    return any(value for key, value in vars(module).items() if key.startswith(AROUND) and key.endswith("_hooks"))


def refuse_lost_hooks(module: nn.Module) -> None:
    """Say what to do where ``torch.export`` asks for a graph: it runs that, without the hooks around the forward.

    Raises:
        ExportError: It does, and there are hooks.
    """
    if is_exporting() and has_hooks(module):
        raise ExportError(
            f"torch.export runs the graph of {type(module).__name__} alone, and would leave out the hooks around its "
            "forward: export torch.nn.Sequential(model), which calls it, or let the forward do what they do"
        )


class _Copy(fx.Interpreter):
    """Runs a graph on the stand-ins of a tracer.

    Args:
        module: Owns the graph's modules.
        graph: What runs.
        tracer: Of torch.fx.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, tracer: Any) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.tracer = tracer

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same call in the new graph; functions of ours may decide by sizes, which stand-ins don't have."""
        return self.tracer.create_proxy("call_function", target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same."""
        return self.tracer.create_proxy("call_method", target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of the module, as the tracer makes it for its leaves; others may hold what it can't go through."""
        module = self.fetch_attr(target)
        path = self.tracer.path_of_module(module)
        if self.tracer.is_leaf_module(module, path):
            return module(*args, **kwargs)
        return self.tracer.create_proxy("call_module", path, args, kwargs)
