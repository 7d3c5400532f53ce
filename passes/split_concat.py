"""Rewrite the concat form into a sum: nothing of x is copied, and static memory costs one sample.

Before:  y = layer over [x ; expand(m)] with weight [Wx | Wm]
After:   y = layer(x);  y += layer_m(m)

    layer([x ; m]; [Wx | Wm], b)  =  layer(x; Wx, b)  +  layer(m; Wm)

The addition is in place on the layer's fresh output, which keeps its memory layout: with Wm = 0
the sum is the layer's output bit for bit. See `aimgraph.runtime.accumulate.accumulate` for when it is
not.

Declines: sites planned in concat form.
"""

from dataclasses import dataclass

from torch import fx

from aimgraph.compiler.aim_paths import CONCAT, aim_path
from aimgraph.compiler.graph_tools import add_terms, argument, with_argument
from aimgraph.compiler.program import BasePass, PassResult, Program, Stage
from aimgraph.errors import PassError
from aimgraph.planning.sites import Skipped
from aimgraph.runtime.reads.view import expand_batch


@dataclass(frozen=True)
class SplitConcat(BasePass):
    """MEMORY -> LOWERED."""

    requires: Stage = Stage.MEMORY
    ensures: Stage = Stage.LOWERED

    def run(self, program: Program) -> PassResult:
        """Rewrite every call of a widened layer whose reads are planned in split form."""
        modified, skipped = False, {}
        for name, graph in program.graphs.items():
            calls = program.plan.calls_in(name)
            for node in graph.find_nodes(op="call_module"):
                if not str(node.target).startswith(f"{CONCAT}."):
                    continue
                first = calls[node.name][0][1]
                if first.lowering == "concat":
                    skipped[first.site] = Skipped(first.site, first.kind, "planned in concat form")
                    continue
                paths = [aim_path(memory, "reads", read.name) for memory, read, _ in calls[node.name]]
                _split(graph, node, first.site, paths)
                modified = True
        return PassResult(program, modified, tuple(skipped.values()))


def _split(graph: fx.Graph, node: fx.Node, site: str, read_paths: list[str]) -> None:
    joined = argument(node, "input")
    inputs = joined.all_input_nodes
    x, parts = inputs[0], [part for part in inputs if part.target is expand_batch]
    if len(parts) != len(read_paths):
        raise PassError(f"{site}: {len(parts)} memory views for {len(read_paths)} read weights at {node.name}")
    node.target = site
    node.args, node.kwargs = with_argument(node, "input", x)
    add_terms(graph, node, [(path, part.args[0]) for path, part in zip(read_paths, parts, strict=True)])
    for dead in (joined, *parts):
        if not dead.users:
            graph.erase_node(dead)
