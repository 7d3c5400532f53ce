"""A transformed module as its graphs say it, node by node: without what guards a call of the module itself."""

from typing import Any

from torch import fx, nn

from aimgraph.emit.bare import bare
from aimgraph.emit.record import GRAPH_STATE, record_of
from aimgraph.inputs.arguments import bound_arguments


def interpreted(aim: nn.Module) -> nn.Module:
    """A module around the modules and tensors of `aim` that runs the graph of its mode, with its default memory set.

    Layers of other sizes can take the place of those that it was transformed with.
    """
    graphs, base = record_of(aim).graphs, bare(aim)

    class Interpreted(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            graph = graphs.get("aim.both") or graphs["aim.train" if self.training else "aim.eval"]
            bound = bound_arguments(base, (args, kwargs))
            return fx.Interpreter(self, graph=graph).run(
                *(bound[str(node.target)] for node in graph.find_nodes(op="placeholder"))
            )

    made = Interpreted()
    own = {
        key: value for key, value in vars(aim).items() if key not in {*GRAPH_STATE, "_record"} and "_hook" not in key
    }
    vars(made).update(own)
    for name in ("_modules", "_parameters", "_buffers"):
        vars(made)[name] = dict(getattr(aim, name))
    return made
