"""Really widen the layers that are planned in concat form: new weights, new channel counts.

Before:  y = (layer over [x ; m], concatenating [Wx | Wm] at every call)(cat([x, m]))
After:   y = layer(cat([x, m])),  layer.weight = [Wx | Wm],  layer.in_channels = C + g * k

The layer stays the module it was, so whatever its own forward does goes on working.

Declines: sites planned in split form.
"""

from dataclasses import dataclass

from torch import nn

from aimgraph.compiler.aim_paths import AIM, CONCAT, aim_path, below_aim
from aimgraph.compiler.program import BasePass, PassResult, Program, Stage
from aimgraph.planning.sites import Skipped
from aimgraph.runtime.layer_kinds import kind_of
from aimgraph.runtime.layers import concat_weight, layer_at, replace_weight
from aimgraph.runtime.memory import remove_module


@dataclass(frozen=True)
class ConcatLayers(BasePass):
    """MEMORY or LOWERED -> LOWERED."""

    requires: Stage = Stage.MEMORY
    ensures: Stage = Stage.LOWERED

    def run(self, program: Program) -> PassResult:
        """Give each concat-form site its widened weight and drop its separate read weights."""
        concat: dict[str, list[str]] = {}
        skipped = []
        for memory, read in program.plan.reads:
            if read.lowering == "concat":
                concat.setdefault(read.site, []).append(aim_path(memory.name, "reads", read.name))
            else:
                skipped.append(Skipped(read.site, read.kind, read.note or "planned in split form"))
        for site, paths in concat.items():
            _widen(program.root, site, paths)
        for graph in program.graphs.values():
            for node in graph.find_nodes(op="call_module"):
                site = str(node.target).removeprefix(f"{CONCAT}.")
                if site != node.target and site in concat:
                    node.target = site
        aim = program.root.get_submodule(AIM)
        aim._modules.pop(below_aim(CONCAT), None)
        return PassResult(program, bool(concat), tuple(dict.fromkeys(skipped)))


def _widen(root: nn.Module, site: str, read_paths: list[str]) -> None:
    layer, reads = layer_at(root, site), [layer_at(root, path) for path in read_paths]
    wide = concat_weight(layer, layer.weight.detach(), [read.weight.detach() for read in reads])
    replace_weight(layer, wide, sum(kind_of(read).channels(read)[0] for read in reads))
    for path in read_paths:
        remove_module(root, path)
