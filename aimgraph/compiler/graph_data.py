"""Graphs as plain data, so that pickling keeps every operation as it is, and which module it belongs to.

A pickled `torch.fx.GraphModule` is traced again from its printed source, which can turn in-place
operators into out-of-place ones. Here nodes are written down one by one instead.
"""

import importlib
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from aimgraph.compiler.node_keys import ADDED, OWNER
from aimgraph.torch_private import OpOverload, OpOverloadPacket, codegen_of, operator_named


@dataclass(frozen=True)
class NodeRef:
    """Stands for a node in pickled arguments."""

    name: str


@dataclass(frozen=True)
class FunctionRef:
    """Stands for a function that its module holds under its name, whatever its qualified name says.

    Some of torch's are made by a factory (``F.max_pool2d``) and don't pickle by themselves.
    """

    module: str
    name: str


@dataclass(frozen=True)
class OperatorRef:
    """Stands for an operator of torch's dispatcher, which does not pickle."""

    name: str


@dataclass(frozen=True)
class NodeData:
    """One node: what `torch.fx.Graph.create_node` takes."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    owner: str | None = None
    """Path of the module whose forward makes it; None for what a pass has inserted, and where it was not noted."""


def dump_graph(graph: fx.Graph) -> list[NodeData]:
    """The nodes of `graph` in order, as data that pickles."""

    def plain(value: Any) -> Any:
        if isinstance(value, torch.memory_format):  # torch.save's protocol can't write one down
            return FunctionRef("torch", str(value).removeprefix("torch."))
        return NodeRef(value.name) if isinstance(value, fx.Node) else value

    return [
        NodeData(
            n.op,
            _target_data(n.target),
            map_aggregate(n.args, plain),
            map_aggregate(n.kwargs, plain),
            n.name,
            owner_of(n),
        )
        for n in graph.nodes
    ]


def load_graph(data: list[NodeData]) -> fx.Graph:
    """The graph that `dump_graph` wrote down, node names included."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def live(value: Any) -> Any:
        return nodes[value.name] if isinstance(value, NodeRef) else _target(value)

    for item in data:
        args, kwargs = map_aggregate(item.args, live), map_aggregate(item.kwargs, live)
        node = nodes[item.name] = graph.create_node(item.op, _target(item.target), args, kwargs, item.name)
        node.meta[OWNER] = item.owner
    return graph


def module_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward made `node`; "" for the root's own."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return str(entries[-1][0]) if entries else ""


def owner_of(node: fx.Node) -> str | None:
    """The path of the module whose forward makes a node, of a call that of the module which calls.

    None for a node that a pass has inserted, or in a graph of which that was not noted.
    """
    if OWNER in node.meta or ADDED in node.meta:
        found: str | None = node.meta.get(OWNER)
        return found
    path = module_path(node)
    called = str(node.target) if node.op == "call_module" else None
    return path.rpartition(".")[0] if path == called else path


def _target_data(target: Any) -> Any:
    if isinstance(target, OpOverload | OpOverloadPacket):
        return OperatorRef(str(target))
    module, name = getattr(target, "__module__", None), getattr(target, "__name__", None)
    if callable(target) and module in sys.modules and getattr(sys.modules[module], str(name), None) is target:
        return FunctionRef(str(module), str(name))
    return target


def _target(data: Any) -> Any:
    if isinstance(data, OperatorRef):
        return operator_named(data.name)
    return getattr(importlib.import_module(data.module), data.name) if isinstance(data, FunctionRef) else data


def plain_copy(graph: fx.Graph) -> fx.Graph:
    """A copy without the compiler's notes, which hold fake tensors."""
    copy = load_graph(dump_graph(graph))
    copy.set_codegen(codegen_of(graph))
    return copy
