"""Add maps and terms behind a sum instead of before it, and where two maps meet there, add one.

Before:  y = layer(x);  y += map;  z = y + rest
After:   y = layer(x);  z = y + rest;  z += map

    (layer(x) + map) + (other(x) + map')  =  (layer(x) + other(x)) + (map + map')

A block whose branches both end in a layer then adds one map, and what runs the graph (onnxruntime, a compiler) can
fuse the sum with the layer before it, which a map between the two prevents. What is read of a memory that is not folded
moves in the same way: its own layer is then the last, which takes the sum, and the activation behind it, with it.

Declines: maps of layers without a batch, maps whose sum something else reads too, sums of unequal shapes or types,
scaled ones, and those that are written into the other summand, unless that is a layer's output.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from aimgraph.compiler.graph_tools import called_module, insert_call, insert_module, submodule_at
from aimgraph.compiler.program import BasePass, PassResult, Program, Stage
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.bias_map import BiasMap
from aimgraph.runtime.inplace import INPLACE, NAMES
from aimgraph.runtime.layer_kinds import is_layer
from aimgraph.runtime.memory import free_name, put_module, remove_module

_IN_PLACE = {("call_function", operator.iadd), ("call_function", INPLACE[NAMES.index("iadd")]), ("call_method", "add_")}
_SUMS = {("call_function", operator.add), ("call_function", torch.add), ("call_method", "add"), *_IN_PLACE}


@dataclass(frozen=True)
class MergeMaps(BasePass):
    """FOLDED -> FOLDED."""

    requires: Stage = Stage.FOLDED

    def run(self, program: Program) -> PassResult:
        """Move every map as far down as it goes, and make one of two that follow each other."""
        modified = False
        for name, graph in program.graphs.items():
            merger = _Merger(program.root, graph, program.runs[name].values)
            waiting = [node for node in graph.nodes if merger.moves(node)]
            while waiting:
                node = waiting.pop(0)
                before = node.args[0]
                moved = merger.move(node)
                if moved is not None:
                    waiting += [before, moved] if merger.moves(before) else [moved]
                    modified = True
            if modified:
                _forget_unused(program.root, graph)
        return PassResult(program, modified)


class _Merger:
    """Moves the maps of one graph."""

    def __init__(self, root: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any]) -> None:
        self.root, self.graph = root, graph
        self.values = dict(values)

    def map_of(self, node: Any) -> BiasMap | None:
        """The map that a node adds."""
        module = called_module(self.root, node) if isinstance(node, fx.Node) else None
        return module if isinstance(module, BiasMap) and not module.grouped_batch else None

    def moves(self, node: Any) -> bool:
        """Whether a node adds a map, or a term that has a batch."""
        return self.map_of(node) is not None or self._is_term(node)

    def _is_term(self, node: Any) -> bool:
        if not isinstance(node, fx.Node) or node.target is not accumulate:
            return False
        to, term = (self.values.get(argument) for argument in node.args[:2])  # type: ignore[arg-type]
        return isinstance(to, Tensor) and isinstance(term, Tensor) and to.dim() > 1 and to.shape[1:] == term.shape[1:]

    def move(self, node: fx.Node) -> fx.Node | None:
        """Move what `node` adds behind the next sum, or a map into the next one; the node there, None if it stays."""
        features = node.args[0]
        if len(node.users) != 1 or not isinstance(features, fx.Node):
            return None
        (user,) = node.users
        first, second = self.map_of(node), self.map_of(user)
        if first is not None and second is not None:
            return self._merge(node, user, first, second)
        if not self._is_sum(node, user, features):
            return None
        user.replace_input_with(node, features)
        with self.graph.inserting_after(user):
            behind = (
                insert_module(self.graph, str(node.target), user)
                if node.op == "call_module"
                else insert_call(self.graph, accumulate, user, node.args[1])
            )
        user.replace_all_uses_with(behind, delete_user_cb=lambda one: one is not behind)
        self.graph.erase_node(node)
        self.values[behind] = self.values.get(user)
        return behind

    def _is_sum(self, node: fx.Node, user: fx.Node, features: fx.Node) -> bool:
        """Whether `user` adds two of a kind, of which `node` is one, and overwrites nothing else."""
        kind, made = (user.op, user.target), self.map_of(node)
        if kind not in _SUMS or user.kwargs or len(user.args) != 2 or len(features.users) != 1:
            return False
        if made is not None and made.batch_axis is None:  # the sum may have a batch that the map's layer has not
            return False
        rest = user.args[1] if user.args[0] is node else user.args[0]
        if not isinstance(rest, fx.Node) or rest is node:
            return False
        one, other = self.values.get(features), self.values.get(rest)
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return False
        overwritten = kind in _IN_PLACE and user.args[0] is rest
        return one.shape == other.shape and one.dtype == other.dtype and (not overwritten or self._is_fresh(rest))

    def _is_fresh(self, node: fx.Node) -> bool:
        """Whether nothing else sees the tensor that `node` gives: a layer's output that is used once."""
        module = called_module(self.root, node)
        fresh = is_layer(module) or isinstance(module, BiasMap) or node.target is accumulate
        return fresh and len(node.users) == 1

    def _merge(self, node: fx.Node, user: fx.Node, first: BiasMap, second: BiasMap) -> fx.Node | None:
        if first.batch_axis != second.batch_axis or first.value.dtype != second.value.dtype:
            return None
        path = free_name(f"{user.target}_sum", lambda one: submodule_at(self.root, one) is None)
        put_module(self.root, path, BiasMap.merged(first, second))
        user.args = node.args
        user.target = path
        self.graph.erase_node(node)
        return user


def _forget_unused(root: nn.Module, graph: fx.Graph) -> None:
    """Take maps out of the model that nothing adds any more."""
    used = {str(node.target) for node in graph.find_nodes(op="call_module")}
    for path, module in list(root.named_modules()):
        if isinstance(module, BiasMap) and path not in used:
            remove_module(root, path)
