"""Remove inserted nodes that nothing uses any more.

Before:  v = view(m0)  (every read moved on to m1)
After:   -

Only what a pass inserted is removed: a node of the base may matter for its side effect alone.

Declines: writes of carried state, which have no users by nature.
"""

from dataclasses import dataclass

from aimgraph.compiler.graph_tools import called_module
from aimgraph.compiler.node_keys import ADDED
from aimgraph.compiler.program import BasePass, PassResult, Program


@dataclass(frozen=True)
class RemoveDead(BasePass):
    """Works at any stage."""

    def run(self, program: Program) -> PassResult:
        """Erase unused inserted nodes, last first."""
        removed = 0
        for graph in program.graphs.values():
            for node in reversed(graph.nodes):
                unused = ADDED in node.meta and node.op != "placeholder" and not node.users
                impure = getattr(called_module(program.root, node), "_is_impure", False)
                if unused and not (impure and len(node.args) > 1):
                    graph.erase_node(node)
                    removed += 1
        return PassResult(program, removed > 0)
