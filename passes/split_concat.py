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

from aimgraph.compiler.graph_tools import add_terms, argument, with_argument
from aimgraph.compiler.node_keys import AIM, CONCAT
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
        readers = {
            (memory.name, call.graph, call.node): read
            for memory in program.plan.memories
            for read in memory.reads
            for call in read.calls
        }
        for name, graph in program.graphs.items():
            for node in graph.find_nodes(op="call_module"):
                if not str(node.target).startswith(f"{CONCAT}."):
                    continue
                reads = [
                    (memory.name, readers[memory.name, name, node.name])
                    for memory in program.plan.memories
                    if (memory.name, name, node.name) in readers
                ]
                site = reads[0][1].site
                if reads[0][1].lowering == "concat":
                    skipped[site] = Skipped(site, reads[0][1].kind, "planned in concat form")
                    continue
                _split(graph, node, site, [f"{AIM}.{memory}.reads.{read.name}" for memory, read in reads])
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
