"""From a module to graphs: one for train and one for eval mode, or a single one where they agree."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from aimgraph.errors import TraceError
from aimgraph.layers import LayerKind
from aimgraph.runtime.inplace import INPLACE

OUTPUT_OF = "output_of"
"""Key in ``node.meta``: paths of the modules whose result the node is."""


class LayerProxy(fx.Proxy):
    """A proxy on which ``x += y`` and its like are recorded as what they are: in place."""


def _record_inplace(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _function in INPLACE:
    setattr(LayerProxy, f"__{_function.__name__}__", _record_inplace(_function))


class LayerTracer(fx.Tracer):
    """Records convolutions and linear layers as calls, and enters only what contains one.

    A module without such a layer below it (norms, activations, drop path) stays one call, so what
    it does with its own `training` flag is not baked into the graph.
    """

    record_stack_traces = True

    def __init__(self, kinds: dict[nn.Module, LayerKind]) -> None:
        super().__init__()
        self.kinds = kinds

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        """Whether the graph calls `module` instead of entering it."""
        if module in self.kinds:
            return self.kinds[module].affine
        if not any(child in self.kinds for child in module.modules()):
            return True
        return type(module).__module__.startswith("torch.nn") and not isinstance(
            module, nn.Sequential | nn.ModuleList | nn.ModuleDict
        )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The stand-in for what `node` gives."""
        return LayerProxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace a call of `m` and note on the resulting node whose output it is."""
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            result.node.meta.setdefault(OUTPUT_OF, []).append(self.path_of_module(m))
        return result


def trace(
    root: nn.Module, kinds: dict[nn.Module, LayerKind], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, fx.Graph]:
    """Trace `root` in train and in eval mode.

    Args:
        root: The module; its `training` flags are as before afterwards.
        kinds: The kind of each of its convolutions and linear layers.
        args: Example positional inputs; arguments of `forward` that neither they nor `kwargs`
            give keep their defaults as constants.
        kwargs: Example keyword inputs.

    Returns:
        ``{"both": graph}`` where the two graphs agree, else ``{"train": ..., "eval": ...}``.

    Raises:
        TraceError: `forward` depends on values that only exist at run time.
    """
    constants = _defaults(root, args, kwargs)
    flags = {module: module.training for module in root.modules()}
    graphs: dict[str, fx.Graph] = {}
    try:
        for mode in ("train", "eval"):
            root.train(mode == "train")
            graphs[mode] = _trace_once(root, kinds, constants)
    finally:
        for module, flag in flags.items():
            module.training = flag
    if _source(graphs["train"]) == _source(graphs["eval"]):
        return {"both": graphs["eval"]}
    return graphs


def _trace_once(root: nn.Module, kinds: dict[nn.Module, LayerKind], constants: dict[str, Any]) -> fx.Graph:
    tracer = LayerTracer(kinds)
    try:
        graph = tracer.trace(root, concrete_args=constants or None)
    except Exception as error:
        raise TraceError(
            f"{type(root).__name__} can't be traced by torch.fx: {error}\n{_where(error)}"
            "its forward depends on values that only exist at run time; move that code into a "
            "submodule without conv or linear layers, which is kept as one call"
        ) from error
    for node in graph.find_nodes(op="placeholder"):
        for name in constants:
            if node.target.startswith(f"{name}_") and node.target[len(name) + 1 :].isdigit():
                node.target = name  # torch.fx renames constant arguments; keywords must go on working
    return graph


def _where(error: BaseException) -> str:
    """The innermost line of the user's code in `error`'s traceback."""
    where = ""
    trace_ = error.__traceback__
    while trace_ is not None:
        code = trace_.tb_frame.f_code
        if "/torch/" not in code.co_filename and not code.co_filename.endswith(("tracing.py", "layers.py")):
            where = f"at {code.co_filename}:{trace_.tb_lineno} in {code.co_name}: "
        trace_ = trace_.tb_next
    return where


def _defaults(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `forward` that the example inputs leave at their defaults."""
    parameters = inspect.signature(root.forward).parameters
    named = [name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    given = set(named[: len(args)]) | set(kwargs)
    return {
        name: parameters[name].default
        for name in named
        if name not in given and parameters[name].default is not inspect.Parameter.empty
    }


def _source(graph: fx.Graph) -> str:
    return str(graph.python_code("self").src)


def module_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward made `node`; "" for the root's own."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return str(entries[-1][0]) if entries else ""
