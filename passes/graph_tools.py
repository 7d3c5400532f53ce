"""What several passes need of a graph: arguments, tensor data flow, inserted nodes."""

from collections.abc import Callable
from typing import Any

import networkx as nx
from torch import fx

from aimgraph.program import ADDED, SHAPES
from aimgraph.runtime.layers import accumulate


def argument(node: fx.Node, keyword: str) -> Any:
    """The first argument of a call, positional or by its keyword."""
    return node.args[0] if node.args else node.kwargs[keyword]


def with_argument(node: fx.Node, keyword: str, value: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the first one replaced."""
    if node.args:
        return (value, *node.args[1:]), dict(node.kwargs)
    return (), dict(node.kwargs) | {keyword: value}


def data_flow(graph: fx.Graph) -> "nx.DiGraph[fx.Node]":
    """Edges between the nodes of `graph` along which tensor data flows.

    Sizes, flags and other plain values carry no features, so they are no path for them.
    """
    flow: nx.DiGraph[fx.Node] = nx.DiGraph()
    flow.add_nodes_from(graph.nodes)
    for node in graph.nodes:
        flow.add_edges_from((source, node) for source in node.all_input_nodes if carries_data(source))
    return flow


def carries_data(node: fx.Node) -> bool:
    """Whether `node` gives a tensor, or a collection with a tensor in it."""
    return SHAPES in node.meta or bool(node.meta.get("aim_has_tensors"))


def insert_call(graph: fx.Graph, function: Callable[..., Any], *args: Any) -> fx.Node:
    """A call_function node at the current insertion point, marked as inserted."""
    node = graph.call_function(function, args)
    node.meta[ADDED] = True
    return node


def insert_module(graph: fx.Graph, path: str, *args: Any) -> fx.Node:
    """A call_module node at the current insertion point, marked as inserted."""
    node = graph.create_node("call_module", path, args)
    node.meta[ADDED] = True
    return node


def add_terms(graph: fx.Graph, node: fx.Node, terms: list[tuple[str, fx.Node]]) -> None:
    """Y -> y + layer_m(m) + ...: add read layers to the call `node` of a layer.

    Args:
        graph: The graph.
        node: The call of the layer itself; what used its result uses the sum afterwards.
        terms: Path of each read layer and the memory view it reads.
    """
    users = list(node.users)
    total = node
    for path, view in terms:
        args, kwargs = with_argument(node, "input", view)
        with graph.inserting_after(total):
            term = insert_module(graph, path, *args)
            term.kwargs = kwargs
        with graph.inserting_after(term):
            total = insert_call(graph, accumulate, total, term)
    for user in users:
        user.replace_input_with(node, total)


Snapshot = dict[fx.Node, tuple[Any, ...]]


def nodes_differ(graph: fx.Graph, before: Snapshot) -> tuple[set[fx.Node], Snapshot]:
    """The nodes that are new or call something else than in the snapshot, and a snapshot of now."""
    now = {node: (node.op, node.target, node.args, node.kwargs) for node in graph.nodes}
    return {node for node, call in now.items() if before.get(node) != call}, now
