"""Remove inserted nodes that nothing uses any more.

Before:  v = view(m0)  (every read moved on to m1)
After:   -

Only what a pass inserted is removed: a node of the base may matter for its side effect alone.

Declines: writes of carried state, which have no users by nature.
"""

from dataclasses import dataclass

from torch import fx, nn

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
                if (
                    ADDED in node.meta
                    and node.op != "placeholder"
                    and not node.users
                    and not _writes(program.root, node)
                ):
                    graph.erase_node(node)
                    removed += 1
        return PassResult(program, removed > 0)


def _writes(root: nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return bool(getattr(root.get_submodule(str(node.target)), "_is_impure", False)) and len(node.args) > 1
