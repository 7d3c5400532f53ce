"""Turn a layer, what is added to it and the batch normalisation behind them into a layer and what is added.

Before:  y = layer(x; W, b);  y += map;  y += layer_m(v; Wm);  z = norm(y)
After:   z = layer(x; s W, s (b - mean) + beta);  z += s map;  z += layer_m(v; s Wm)      s = gamma / sqrt(var + eps)

    norm(layer(x; W, b) + map + layer_m(v; Wm))  =  s (W x + b + map + Wm v - mean) + beta

Running statistics take part, so it holds in eval mode only. A subclass of a layer that is a site uses its weight as it
is, or it would be none; whether it adds a bias that it has not had is not known, so what the norm adds goes to the
memory's side there.

Declines: norms without running statistics, of another class than torch's own, or called twice; layers that are neither
torch's own nor sites, transposed, or used elsewhere; and features between the two that something else reads.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from aimgraph.compiler.aim_paths import AIM, aim_path
from aimgraph.compiler.graph_tools import called_module, insert_call, is_read, names_of
from aimgraph.compiler.program import BasePass, Changes, PassResult, Program, Stage
from aimgraph.passes.fold_memory import is_plain, untouched, uses
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.bias_map import BiasMap
from aimgraph.runtime.layer_kinds import AffineLayer, is_layer, kind_of
from aimgraph.runtime.layers import layer_at
from aimgraph.runtime.memory import free_name

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class FoldBatchnorm(BasePass):
    """FOLDED -> FOLDED."""

    requires: Stage = Stage.FOLDED

    def run(self, program: Program) -> PassResult:
        """Fuse every norm that follows a layer."""
        modified, biased = False, set[nn.Module]()
        for name, graph in program.graphs.items():
            fuser = _Fuser(program, graph)
            values = program.runs[name].values
            for node in list(graph.find_nodes(op="call_module")):
                value = values.get(node)
                modified = (isinstance(value, Tensor) and fuser.fuse(node, value.dim())) or modified
            biased |= fuser.biased
        return PassResult(program, modified, changes=Changes(names=names_of(program.root, biased, "bias")))


class _Fuser:
    """Fuses the norms of one graph."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        self.root, self.graph = program.root, graph
        self.sites = {read.site for _, read in program.plan.reads if not read.raw and not read.function}
        self.uses = uses(self.root, graph)
        self.calls = Counter(id(called_module(self.root, node)) for node in graph.find_nodes(op="call_module"))
        self.biased: set[nn.Module] = set()  # layers that had no bias before

    def fuse(self, node: fx.Node, dimensions: int) -> bool:
        """Take a norm into the layer before it; whether that could be done."""
        norm = called_module(self.root, node)
        if not isinstance(norm, NORMS) or type(norm) not in NORMS or self.calls[id(norm)] != 1 or node.kwargs:
            return False
        if not untouched(norm) or norm.training or norm.running_mean is None or norm.running_var is None:
            return False
        found = self._added(node.args[0])
        if found is None:
            return False
        before, maps, terms = found
        layer = called_module(self.root, before)
        if not _by_rows(layer) or not self._scales(layer, before, [*maps, *terms]):
            return False
        if not kind_of(layer).kernel(layer) and dimensions != 2:  # the norm's channels are another dimension
            return False
        if any(self.uses[id(parameter)] != 1 for parameter in layer.parameters()):
            return False
        if layer.bias is None and is_plain(layer):
            self.biased.add(layer)
        reads = [layer_at(self.root, str(term.target)) for term in terms]
        shift = _fuse(layer, maps, reads, norm, biased=is_plain(layer))
        if shift is not None:
            self._shift(terms, maps, shift, dimensions)
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        self.graph.erase_node(node)
        return True

    def _added(self, before: Any) -> tuple[fx.Node, list[BiasMap], list[fx.Node]] | None:
        """What is added to a layer's output, and the layer's call; None where something else sees it."""
        maps, terms = [], []
        while isinstance(before, fx.Node) and len(before.users) == 1:
            module = called_module(self.root, before)
            if isinstance(module, BiasMap):
                if module.grouped_batch or self.calls[id(module)] != 1:
                    return None
                maps.append(module)
            elif before.target is accumulate:
                term = before.args[1]
                if not isinstance(term, fx.Node) or not self._is_term(term):
                    return None
                terms.append(term)
            else:
                return before, maps, terms
            before = before.args[0]
        return None

    def _is_term(self, node: fx.Node) -> bool:
        """Whether a node is a read whose weight nothing else uses."""
        if not is_read(node) or len(node.users) != 1:
            return False
        module = called_module(self.root, node)
        return _by_rows(module) and "weight" in module._parameters and self.uses[id(module.weight)] == 1

    def _scales(self, layer: AffineLayer, call: fx.Node, added: list[Any]) -> bool:
        """Whether a layer's output is known to be proportional to its weight and bias."""
        if is_plain(layer):
            return True
        own = "weight" in layer._parameters and untouched(layer)
        return own and layer.bias is None and str(call.target) in self.sites and bool(added)

    def _shift(self, terms: list[fx.Node], maps: list[BiasMap], shift: Tensor, dimensions: int) -> None:
        """Add what the norm adds to a map, or to a term."""
        shift = shift.reshape(-1, *[1] * (dimensions - 2))
        if maps:
            maps[0].value = maps[0].value + shift
            return
        aim = self.root.get_submodule(AIM)
        name = free_name("_shift", lambda one: one not in aim._buffers)
        aim.register_buffer(name, shift[None])
        term = terms[0]
        (user,) = term.users
        with self.graph.inserting_after(term):
            value = self.graph.get_attr(aim_path(name))
        with self.graph.inserting_after(value):
            total = insert_call(self.graph, torch.add, term, value)
        user.replace_input_with(term, total)


def _by_rows(module: nn.Module | None) -> TypeGuard[AffineLayer]:
    """Whether a module is a layer with a row of its weight for each output channel."""
    return is_layer(module) and kind_of(module).in_axis == 1


@torch.no_grad()
def _fuse(
    layer: AffineLayer, maps: list[BiasMap], reads: list[AffineLayer], norm: nn.Module, *, biased: bool
) -> Tensor | None:
    """Scale everything; what the norm adds, [C], becomes the layer's bias, or is given back if that is not `biased`."""
    assert isinstance(norm, NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    dtype = layer.weight.dtype
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    for scaled in (layer, *reads):
        weight = scaled.weight.double() * scale.reshape(-1, *[1] * (scaled.weight.dim() - 1))
        scaled.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    for made in maps:
        after = made.value.dim() - (2 if made.batch_axis == 0 else 1)  # dimensions behind the channels
        made.value = (made.value.double() * scale.reshape(-1, *[1] * after)).to(made.value.dtype)
    if not biased:
        return bias.to(dtype)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return None
