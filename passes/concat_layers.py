"""Really widen the layers that are planned in concat form: new weights, new channel counts.

Before:  y = (layer over [x ; m], concatenating [Wx | Wm] at every call)(cat([x, m]))
After:   y = layer(cat([x, m])),  layer.weight = [Wx | Wm],  layer.in_channels = C + g * k

The layer stays the module it was, so whatever its own forward does goes on working.

Declines: sites planned in split form.
"""

from dataclasses import dataclass

from torch import nn

from aimgraph.compiler.node_keys import AIM, CONCAT
from aimgraph.compiler.program import BasePass, PassResult, Program, Stage
from aimgraph.planning.sites import Skipped
from aimgraph.runtime.layers import AffineLayer, concat_weight, groups_of


@dataclass(frozen=True)
class ConcatLayers(BasePass):
    """MEMORY or LOWERED -> LOWERED."""

    requires: Stage = Stage.MEMORY
    ensures: Stage = Stage.LOWERED

    def run(self, program: Program) -> PassResult:
        """Give each concat-form site its widened weight and drop its separate read weights."""
        concat: dict[str, list[tuple[str, str]]] = {}
        skipped = []
        for memory in program.plan.memories:
            for read in memory.reads:
                if read.lowering == "concat":
                    concat.setdefault(read.site, []).append((memory.name, read.name))
                else:
                    skipped.append(Skipped(read.site, read.kind, read.note or "planned in split form"))
        for site, reads in concat.items():
            _widen(program.root, site, [f"{AIM}.{memory}.reads.{name}" for memory, name in reads])
        for graph in program.graphs.values():
            for node in graph.find_nodes(op="call_module"):
                site = str(node.target).removeprefix(f"{CONCAT}.")
                if site != node.target and site in concat:
                    node.target = site
        aim = program.root.get_submodule(AIM)
        aim._modules.pop(CONCAT.removeprefix(f"{AIM}."), None)
        return PassResult(program, bool(concat), tuple(dict.fromkeys(skipped)))


def _widen(root: nn.Module, site: str, read_paths: list[str]) -> None:
    layer = root.get_submodule(site)
    assert isinstance(layer, AffineLayer)
    reads = [root.get_submodule(path) for path in read_paths]
    weights = [read.weight.detach() for read in reads]  # type: ignore[operator]
    wide = concat_weight(layer, layer.weight.detach(), weights)
    channels = sum(read.in_features if isinstance(read, nn.Linear) else read.in_channels for read in reads)  # type: ignore[misc]
    layer.weight = nn.Parameter(wide, requires_grad=layer.weight.requires_grad)
    if isinstance(layer, nn.Linear):
        layer.in_features += channels
    else:
        layer.in_channels += groups_of(layer) * channels
    for path in read_paths:
        _remove(root, path)


def _remove(root: nn.Module, path: str) -> None:
    """Take a read layer out of the tree; its children, reads of layers below it, keep their place."""
    parent, _, name = path.rpartition(".")
    owner, read = root.get_submodule(parent), root.get_submodule(path)
    below = {key: child for key, child in read._modules.items() if child is not None}
    del owner._modules[name]
    nested = nn.Module()
    for key, child in below.items():
        if any(True for _ in child.parameters()):
            nested.add_module(key, child)
    if nested._modules:
        owner.add_module(name, nested)
