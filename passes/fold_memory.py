"""Turn what is read of a memory that never changes into a map per call: no memory arithmetic is left.

Before:  m = source();  v = fit(view(m), x);  y = layer(x);  y += layer_m(v)
After:   y = layer(x);  y += map                        map = layer_m(v), computed once
or:      y = layer(x; W, b + c)                         where the map is c at every place

    layer(x; W, b) + layer(m; Wm)  =  layer(x; W, b) + map

A map has the size of the layer's output on the example inputs; what is the same at every place holds at any size.

Declines: reads of what features have written, of carried state that eval-mode forwards write, of sources and through
reads that give other values at each call, and reads inside modules that are kept as one call.
"""

from collections import Counter
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from aimgraph.compiler.aim_paths import aim_path
from aimgraph.compiler.graph_tools import called_module, insert_module, is_read, names_of
from aimgraph.compiler.node_keys import ADDED
from aimgraph.compiler.program import BasePass, Changes, PassResult, Program, Stage
from aimgraph.copies import copy_module
from aimgraph.planning.sites import Skipped
from aimgraph.reproducible import kept_randomness
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.bias_map import BiasMap, constant_over_grid
from aimgraph.runtime.function_read import group_batch
from aimgraph.runtime.layer_kinds import AffineLayer, is_layer, kind_of
from aimgraph.runtime.memory import put_or_share
from aimgraph.runtime.opaque import OpaqueCall
from aimgraph.runtime.reads.view import fit
from aimgraph.runtime.state import StateCarry


@dataclass(frozen=True)
class FoldMemory(BasePass):
    """LOWERED -> FOLDED.

    Args:
        keep: Memories to leave as they are.
    """

    keep: tuple[str, ...] = ()
    requires: Stage = Stage.LOWERED
    ensures: Stage = Stage.FOLDED

    def run(self, program: Program) -> PassResult:
        """Replace every term that depends on parameters alone."""
        modified, biased = False, set[nn.Module]()
        inside = [read.name for _, read in program.plan.reads if read.opaque]
        skipped = [Skipped(name, "read", "inside a module that is kept as one call") for name in inside]
        for name, graph in program.graphs.items():
            folder = _Folder(program, name, graph, self.keep)
            modified = folder.fold() or modified
            skipped += folder.skipped
            biased |= folder.biased
        changes = Changes(names=names_of(program.root, biased, "bias"))
        return PassResult(program, modified, tuple(skipped), changes)


class _Folder:
    """Folds one graph."""

    def __init__(self, program: Program, name: str, graph: fx.Graph, keep: tuple[str, ...]) -> None:
        self.program, self.root, self.graph = program, program.root, graph
        self.run = program.runs[name]
        self.static: dict[fx.Node, Tensor] = {}
        self.changing: set[str] = set()  # memories
        self.skipped: list[Skipped] = []
        self.biased: set[nn.Module] = set()  # layers that had no bias before
        self.uses = uses(program.root, graph)
        self.sources = {aim_path(memory.name, "source") for memory in program.plan.memories if memory.name not in keep}

    def fold(self) -> bool:
        """Fold what can be; whether anything was."""
        with torch.no_grad():
            for node in self.graph.nodes:
                value = self._value(node)
                if value is not None:
                    self.static[node] = value
                    node.meta[ADDED] = True
        folded = False
        for node in list(self.graph.nodes):
            if is_read(node):
                (user,) = node.users
                done = node in self.static and self._fold_term(node, user)
                folded |= done
                if not done:
                    self._note(node)
        return folded

    def _note(self, term: fx.Node) -> None:
        site = str(term.target).partition(".reads.")[2]
        view = term.all_input_nodes[0]
        written = view.target is fit and view.args[0] not in self.static
        reason = "it reads what features have written" if written else "an argument of its call depends on the input"
        if written and str(term.target).split(".")[1] in self.changing:
            reason = "its source or its read gives other values at each call"
        self.skipped.append(Skipped(site, "read", reason))

    def _value(self, node: fx.Node) -> Tensor | None:
        """What a node gives, if that depends on parameters alone."""
        module = called_module(self.root, node)
        if module is not None and node.target in self.sources:
            return self._same(node, module)
        if isinstance(module, StateCarry) and (len(node.args) > 1 or module.write_in_eval):
            return None
        inputs = node.all_input_nodes
        if node.target is fit:
            given: Any = node.args
            view, like, *rest = given
            return fit(self.static[view], self._like(like), *rest) if view in self.static else None
        if not inputs or any(one not in self.static for one in inputs):
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: self.static[one])
        if module is not None and ".views." in str(node.target):
            return self._same(node, module, *args)
        call: Any = module if module is not None else node.target
        if node.op == "call_method":
            call, args = getattr(args[0], call), args[1:]
        return torch.as_tensor(call(*args, **kwargs))

    def _same(self, node: fx.Node, module: nn.Module, *args: Any) -> Tensor | None:
        """What a source or a read gives, if that is the same at each call."""
        with kept_randomness():
            probe = copy_module(module)
            first, second = (torch.as_tensor(probe(*args)) for _ in range(2))
        if torch.allclose(first, second, rtol=0, atol=0, equal_nan=True):
            return first
        self.changing.add(str(node.target).split(".")[1])
        return None

    def _like(self, node: Any) -> Tensor:
        """A tensor of the shape, dtype and device that the node's has, and of one number."""
        seen = self.run.values[node]
        return torch.zeros((), dtype=seen.dtype, device=seen.device).expand(seen.shape)

    def _fold_term(self, term: fx.Node, user: fx.Node) -> bool:
        grouped_batch = user.target is group_batch
        total = next(iter(user.users)) if grouped_batch else user
        if total.target is not accumulate or total.args[1] is not (user if grouped_batch else term):
            return False
        output = total.args[0]
        assert isinstance(output, fx.Node)
        value, view = self.static[term].detach(), term.all_input_nodes[0]
        assert view.target is fit
        batch_axis: Any = view.args[3]
        site = str(term.target).partition(".reads.")[2]
        if not grouped_batch and self._into_bias(output, value):
            total.replace_all_uses_with(output)
            self.graph.erase_node(total)
            return True
        made = BiasMap(value.contiguous(), (site,), batch_axis, grouped_batch=grouped_batch)
        path = put_or_share(self.root, str(term.target).replace(".reads.", ".maps.", 1), made, made.is_same)
        with self.graph.inserting_before(total):
            total.replace_all_uses_with(insert_module(self.graph, path, output))
        self.graph.erase_node(total)
        if grouped_batch:
            self.graph.erase_node(user)
        return True

    def _into_bias(self, output: fx.Node, value: Tensor) -> bool:
        """Add a map that is the same everywhere to the layer's bias, if the layer is plain and called once."""
        layer = called_module(self.root, output)
        if not is_plain(layer) or any(self.uses[id(p)] != 1 for p in layer.parameters()):
            return False
        rank = len(kind_of(layer).kernel(layer))
        axis = value.dim() - 1 - rank
        if value.numel() == value.shape[axis] and (rank or value.dim() > 2):
            return False  # the only place at this size, one of many at another
        number = constant_over_grid(value, axis)
        if number is None:
            return False
        with torch.no_grad():
            bias = number if layer.bias is None else layer.bias + number
        if layer.bias is None:
            self.biased.add(layer)
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
        self.uses[id(layer.bias)] = 1
        return True


def is_plain(layer: nn.Module | None) -> TypeGuard[AffineLayer]:
    """Whether a layer is of the class of its kind, as it was made: its bias is added to its output, and that is all."""
    if not is_layer(layer) or type(layer) is not kind_of(layer).layer:
        return False
    return untouched(layer) and {"weight", "bias"} <= layer._parameters.keys()


def untouched(module: nn.Module) -> bool:
    """Whether a module runs the forward of its class, without hooks."""
    hooks = any(value for key, value in vars(module).items() if key.endswith("_hooks"))
    return not hooks and "forward" not in vars(module)


def uses(root: nn.Module, graph: fx.Graph) -> Counter[int]:
    """How often a graph uses each parameter, by identity: calls of what owns it, and what takes it by its name."""
    found: Counter[int] = Counter()
    for node in graph.nodes:
        called = called_module(root, node)
        if isinstance(called, OpaqueCall):
            called = called.aim_borrowed[0].get_submodule(called.path)
        if called is not None:
            found.update({id(parameter) for parameter in called.parameters()})
        elif node.op == "get_attr":
            found[id(attrgetter(str(node.target))(root))] += 1
    return found
