"""Graphs down to torch's own modules: calls of any other are replaced by what their forwards do."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from aimgraph.compiler.graph_data import owner_of
from aimgraph.compiler.node_keys import OWNER
from aimgraph.compiler.program import Program
from aimgraph.errors import PlanError
from aimgraph.runtime.guards import constant, guard
from aimgraph.runtime.inplace import INPLACE
from aimgraph.torch_private import asserted, tree_map
from aimgraph.tracing.frontend import build_program

Kept = Callable[[nn.Module], bool]
"""Whether a module stays one call."""


class Alone(nn.Module):
    """A module with a path.

    Args:
        inner: The module.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives."""
        return self.inner(*args, **kwargs)


def inlined(program: Program, kept: Kept) -> dict[str, fx.Graph]:
    """The graphs of a program for train and for eval mode, with every module entered that is not kept.

    Args:
        program: It is not changed.
        kept: Which modules stay calls.

    Raises:
        PlanError: A part can't be traced.
        TraceError: The forward of such a module can't be traced.
    """
    for path, part in program.signature.opaque.items():
        raise PlanError(f"{path} can't be traced, and what can't be has no source: {part.reason}")
    made: dict[str, fx.Graph] = {}
    for mode in ("train", "eval"):
        name = mode if mode in program.graphs else "both"
        graph, values = _copied(program.graphs[name], program.runs[name].values)
        _inline_all(program.root, graph, values, train=mode == "train", kept=kept)
        without_questions(graph)
        made[mode] = graph
    return made


def _copied(graph: fx.Graph, values: Mapping[fx.Node, Any]) -> tuple[fx.Graph, dict[fx.Node, Any]]:
    """A copy of a graph, and what each of its nodes gives."""
    made, stands = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        stands[node] = made.node_copy(node, lambda used: stands[used])
    return made, {stands[node]: values[node] for node in graph.nodes if node in values}


def _inline_all(root: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any], *, train: bool, kept: Kept) -> None:
    """Enter what is not kept, in place; the values of new nodes are added."""
    for node in list(graph.nodes):
        node.meta[OWNER] = owner_of(node) or ""
        if node.op != "call_module":
            continue
        module = root.get_submodule(str(node.target))
        if not kept(module):
            _inline(graph, node, module, values, train=train, kept=kept)


def without_questions(graph: fx.Graph) -> None:
    """Take away what a forward asks of sizes and flags, which is settled for the example's; nothing else changes."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("output", "placeholder"):
            continue
        target: Any = node.target
        of_sizes = target in ("size", "dim") or getattr(target, "__module__", "") == "_operator"
        plain = node.op == "get_attr" or (of_sizes and target not in _WRITES)
        if target in (guard, constant, asserted, getattr) or plain:
            graph.erase_node(node)


_WRITES = (operator.setitem, operator.delitem, *INPLACE)


def _inline(
    graph: fx.Graph, node: fx.Node, module: nn.Module, values: dict[fx.Node, Any], *, train: bool, kept: Kept
) -> None:
    """Replace a call by the nodes of the module's own graph."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: _example(values[one]))
    program = build_program(Alone(module), (tuple(args), dict(kwargs)), (), share=True, enter=("", "inner"))
    name = "both" if "both" in program.graphs else "train" if train else "eval"
    inner = program.graphs[name]
    gave = dict(program.runs[name].values)
    _inline_all(program.root, inner, gave, train=train, kept=kept)
    given = iter((*node.args, *node.kwargs.values()))
    stands: dict[fx.Node, Any] = {one: next(given, None) for one in inner.find_nodes(op="placeholder")}
    path = str(node.target)
    with graph.inserting_before(node):
        for one in inner.nodes:
            if one.op == "placeholder":
                continue
            if one.op == "output":
                node.replace_all_uses_with(fx.map_arg(one.args[0], lambda ended: stands[ended]))
                break
            made = stands[one] = graph.node_copy(one, lambda used: stands[used])
            values[made] = gave[one]
            if one.op in ("call_module", "get_attr"):
                made.target = _below(path, str(one.target))
            made.meta[OWNER] = _below(path, str(one.meta[OWNER]))
    graph.erase_node(node)


def _below(path: str, inner: str) -> str:
    """``inner.act`` of a module that stands alone -> ``layer1.norm.act``."""
    return path + inner.removeprefix("inner")


def _example(value: Any) -> Any:
    """What a node gave, as numbers."""
    return tree_map(lambda leaf: torch.zeros(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf, value)
