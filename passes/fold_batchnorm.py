"""Turn a layer, its map and the batch normalisation behind them into a layer and a map.

Before:  y = layer(x; W, b);  y += map;  z = norm(y)
After:   z = layer(x; s W, s (b - mean) + beta);  z += s map        s = gamma / sqrt(var + eps)

    norm(layer(x; W, b) + map)  =  s (W x + b + map - mean) + beta

Running statistics take part, so it holds in eval mode only.

Declines: norms without running statistics, of another class than torch's own, or called twice; layers that are not
torch's own, transposed, or used elsewhere; and features between the two that something else reads.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from aimgraph.passes.fold_memory import declared, is_plain, untouched, uses
from aimgraph.program import BasePass, PassResult, Program, Stage
from aimgraph.runtime.folded import BiasMap
from aimgraph.runtime.layers import AffineLayer, is_transposed

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class FoldBatchnorm(BasePass):
    """FOLDED -> FOLDED."""

    requires: Stage = Stage.FOLDED

    def run(self, program: Program) -> PassResult:
        """Fuse every norm that follows a layer."""
        modified = False
        for name, graph in program.graphs.items():
            fuser = _Fuser(program.root, graph)
            values = program.runs[name].values
            for node in list(graph.find_nodes(op="call_module")):
                value = values.get(node)
                modified = (isinstance(value, Tensor) and fuser.fuse(node, value.dim())) or modified
        return PassResult(declared(program), modified)


class _Fuser:
    """Fuses the norms of one graph."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph = root, graph
        self.uses = uses(root, graph)
        called = [root.get_submodule(str(node.target)) for node in graph.find_nodes(op="call_module")]
        self.calls = Counter(map(id, called))

    def fuse(self, node: fx.Node, dimensions: int) -> bool:
        """Take a norm into the layer before it; whether that could be done."""
        norm = self.root.get_submodule(str(node.target))
        if type(norm) not in NORMS or self.calls[id(norm)] != 1 or node.kwargs or not untouched(norm):
            return False
        assert isinstance(norm, NORMS)
        if norm.training or norm.running_mean is None or norm.running_var is None:
            return False
        before, maps = node.args[0], []
        while isinstance(before, fx.Node) and isinstance(module := self._module(before), BiasMap):
            if module.folded or self.calls[id(module)] != 1 or len(before.users) != 1:
                return False
            maps.append(module)
            before = before.args[0]
        if not isinstance(before, fx.Node) or len(before.users) != 1:
            return False
        layer = self._module(before)
        if not isinstance(layer, AffineLayer) or not is_plain(layer) or is_transposed(layer):
            return False
        if isinstance(layer, nn.Linear) and dimensions != 2:  # the norm's channels are another dimension
            return False
        if any(self.uses[id(parameter)] != 1 for parameter in layer.parameters()):
            return False
        _fuse(layer, maps, norm)
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        self.graph.erase_node(node)
        return True

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None


@torch.no_grad()
def _fuse(layer: AffineLayer, maps: list[BiasMap], norm: nn.Module) -> None:
    assert isinstance(norm, NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    weight, dtype = layer.weight, layer.weight.dtype
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    scaled = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    layer.weight = nn.Parameter(scaled.to(dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    for made in maps:
        axis = 1 if made.batch_axis == 0 else 0
        shape = [1] * made.value.dim()
        shape[axis] = -1
        made.value = (made.value.double() * scale.reshape(shape)).to(made.value.dtype)
