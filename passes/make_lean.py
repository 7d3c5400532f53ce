"""Let the functions of a frozen base run in forms that keep less for the backward pass.

Before:  y = conv1(x);                     z = relu(y)
After:   y = lean_call(self.conv1, x);     z = aimgraph.runtime.lean.activations.relu(y)

A batch normalisation and an activation that alone reads what it gives become one call:

Before:  y = bn1(x);  z = relu1(y)
After:   z = lean_pair(self.bn1, self.relu1, x)

    y = f(x; w),   dL/dx = b(dL/dy; kept)

With `w` fixed, `kept` holds no features, or one bit of each. A convolution and a frozen norm keep their weights, a ReLU
one bit a value, max pooling a byte a window, mean pooling nothing. Torch itself keeps nothing for sums, concatenations
and linear layers. Whether `w` is fixed is asked at each call: a layer that is trained after all keeps what it needs.

Declines: modules that are kept as one call, of which nothing is known; functions whose gradient needs their features
(softmax, attention, layer normalisation), which torch keeps once; and tensors of other classes than torch's own.
"""

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from aimgraph.compiler.aim_paths import OPAQUE, is_added
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.compiler.program import BasePass, PassResult, Program, Stage
from aimgraph.planning.sites import Skipped
from aimgraph.runtime.lean.call import lean_call, lean_function, lean_method
from aimgraph.runtime.lean.forms import METHODS, has_lean_form
from aimgraph.runtime.lean.pair import ACTIVATIONS, NAMES, NORMS, lean_pair


@dataclass(frozen=True)
class MakeLean(BasePass):
    """Works on a program with its memory."""

    requires: Stage = Stage.LOWERED

    def run(self, program: Program) -> PassResult:
        """Rewrite every graph."""
        modified = [make_lean(graph, program.root) for graph in program.graphs.values()]
        skipped = {node.target: node for graph in program.graphs.values() for node in graph.nodes if _is_opaque(node)}
        reasons = tuple(Skipped(str(target), "call", "kept as one call") for target in skipped)
        return PassResult(program, any(modified), reasons)


def make_lean(graph: fx.Graph, root: nn.Module) -> bool:
    """Rewrite a graph; whether anything changed.

    Args:
        graph: It is edited.
        root: Owner of its modules.
    """
    modified = False
    for node in graph.nodes:
        if node.op == "call_module":
            if is_added(str(node.target)) or not has_lean_form(submodule_at(root, str(node.target))):
                continue
            with graph.inserting_before(node):
                module = graph.get_attr(str(node.target))
            node.op, node.target, node.args = "call_function", lean_call, (module, *node.args)
        elif node.op == "call_method" and node.target in METHODS:
            node.op, node.target, node.args = "call_function", lean_method, (node.target, *node.args)
        elif node.op == "call_function" and (form := lean_function(node.target, node.kwargs)) is not node.target:
            node.target = form
        else:
            continue
        modified = True
        if (norm := _norm_before(node, root)) is not None:
            _pair(graph, norm, node)
    return modified


def _norm_before(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The call of a norm whose output an activation alone reads; None where there is none."""
    activation, *args = _called(node)
    norm = args[0] if args else None
    if not isinstance(norm, fx.Node) or norm.target is not lean_call or list(norm.users) != [node]:
        return None
    between = node.prev
    while between.op == "get_attr":
        between = between.prev
    if between is not norm:  # it may write over what the norm reads
        return None
    if (_class(activation, root) or activation) not in (*ACTIVATIONS, *NAMES) or len(norm.args) != 2 or norm.kwargs:
        return None
    return norm if _class(norm.args[0], root) in NORMS else None


def _called(node: fx.Node) -> list[Any]:
    """The module, or the function, and its positional arguments."""
    return list(node.args) if node.target is lean_call else [node.target, *node.args]


def _class(module: Any, root: nn.Module) -> type[nn.Module] | None:
    """Of the module that a node gets; None for anything else."""
    found = submodule_at(root, str(module.target)) if isinstance(module, fx.Node) else None
    return None if found is None else type(found)


def _pair(graph: fx.Graph, norm: fx.Node, node: fx.Node) -> None:
    """Make one call of two."""
    activation, _, *rest = _called(node)
    module, x = norm.args
    node.target, node.args = lean_pair, (module, NAMES.get(activation, activation), x, *rest)
    graph.erase_node(norm)


def _is_opaque(node: fx.Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith(f"{OPAQUE}.")
