"""What several passes need of a graph: arguments, tensor data flow, inserted nodes."""

from collections.abc import Callable, Set
from typing import Any

import networkx as nx
from torch import Tensor, fx, nn

from aimgraph.compiler.aim_paths import is_read_path
from aimgraph.compiler.node_keys import ADDED, HAS_TENSORS, NUMBERS, SHAPES
from aimgraph.compiler.program import Program
from aimgraph.fake.tensors import fake_inputs
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.function_read import group_batch
from aimgraph.runtime.layer_kinds import FUNCTIONS
from aimgraph.runtime.layers import call_options, given_to
from aimgraph.torch_private import keystr, tree_flatten_with_path


def argument(node: fx.Node, keyword: str) -> Any:
    """The first argument of a call, positional or by its keyword."""
    return node.args[0] if node.args else node.kwargs[keyword]


def with_argument(node: fx.Node, keyword: str, value: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the first one replaced."""
    if node.args:
        return (value, *node.args[1:]), dict(node.kwargs)
    return (), dict(node.kwargs) | {keyword: value}


def options(node: fx.Node) -> dict[str, Any]:
    """Every argument of a call of a convolution or linear function, by name."""
    assert callable(node.target)
    return given_to(node.target, node.args, node.kwargs)


def site_layer(root: nn.Module, node: fx.Node, batch: int) -> nn.Module:
    """The layer that `node` calls; for a function, a stand-in of torch's without values.

    Args:
        root: Owner of the graph's modules.
        node: The call of a layer, or of a function whose weight has a known shape.
        batch: The example batch size; where groups grow with it, the stand-in has those of one sample.
    """
    if node.op == "call_module":
        return root.get_submodule(str(node.target))
    given = options(node)
    shape, groups = given["weight"].meta[SHAPES][0], groups_at(given.get("groups", 1))[0]
    assert callable(node.target)
    return function_layer(node.target, shape, groups, batch if groups_batch(node) else 1)


def called_module(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that `node` calls; None if it calls something else."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def function_layer(function: Callable[..., Any], weight: tuple[int, ...], groups: int, samples: int = 1) -> nn.Module:
    """The layer that a function's call is, as a stand-in of torch's without values.

    Args:
        function: A convolution or linear function.
        weight: Shape of its weight.
        groups: g.
        samples: The batch size where groups grow with it; the stand-in has those of one sample.
    """
    return FUNCTIONS[function].stand_in((weight[0] // samples, *weight[1:]), groups // samples)  # first axis: O, or C


def groups_at(groups: Any) -> tuple[int, int]:
    """What the groups of a call are at two batch sizes."""
    if isinstance(groups, fx.Node):
        found: tuple[int, int] = groups.meta.get(NUMBERS, (0, 0))
        return found
    return int(groups), int(groups)


def groups_batch(node: fx.Node) -> bool:
    """Whether a call convolves all samples as groups of one, so that its groups grow with the batch."""
    first, second = groups_at(options(node).get("groups", 1))
    return first != second


def submodule_at(root: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`; None if there is none."""
    module: nn.Module | None = root
    for name in path.split("."):
        module = module._modules.get(name) if module is not None else None
    return module


def names_of(root: nn.Module, modules: Set[nn.Module], attribute: str) -> frozenset[str]:
    """The names that an attribute of these modules has in `root`, under every path of theirs."""
    named = root.named_modules(remove_duplicate=False)
    return frozenset(f"{path}.{attribute}" for path, module in named if module in modules)


def data_flow(graph: fx.Graph) -> "nx.DiGraph[fx.Node]":
    """Edges between the nodes of `graph` along which tensor data flows.

    Sizes, flags and other plain values carry no features, so they are no path for them.
    """
    flow: nx.DiGraph[fx.Node] = nx.DiGraph()
    flow.add_nodes_from(graph.nodes)
    for node in graph.nodes:
        flow.add_edges_from((source, node) for source in node.all_input_nodes if carries_data(source))
    return flow


def carries_data(node: fx.Node) -> bool:
    """Whether `node` gives a tensor, or a collection with a tensor in it."""
    return SHAPES in node.meta or bool(node.meta.get(HAS_TENSORS))


def insert_call(graph: fx.Graph, function: Callable[..., Any], *args: Any) -> fx.Node:
    """A call_function node at the current insertion point, marked as inserted."""
    node = graph.call_function(function, args)
    node.meta[ADDED] = True
    return node


def is_read(node: fx.Node) -> bool:
    """Whether a node calls a read layer: its result is the memory's term."""
    return node.op == "call_module" and is_read_path(str(node.target))


def insert_module(graph: fx.Graph, path: str, *args: Any) -> fx.Node:
    """A call_module node at the current insertion point, marked as inserted."""
    node = graph.create_node("call_module", path, args)
    node.meta[ADDED] = True
    return node


def insert_input(program: Program, name: str, target: str, like: Tensor) -> fx.Node:
    """A new input of a graph, before those of the base and marked as inserted; a pass that adds one declares it.

    Args:
        program: Owner of the graph.
        name: Of the graph.
        target: Name of the input.
        like: A value of its shape, dtype and device.
    """
    graph, run = program.graphs[name], program.runs[name]
    with graph.inserting_before(next(node for node in graph.nodes if ADDED not in node.meta)):
        node = graph.placeholder(target)
    node.meta[ADDED] = True
    run.inputs |= fake_inputs({target: like}, run.mode)
    return node


def output_shapes(program: Program, name: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of a graph's output, by its place in it (``output``, ``output[0]``, ...) -> its shape."""
    value = program.runs[name].values.get(program.graphs[name].output_node())
    leaves, _ = tree_flatten_with_path(value)
    return {f"output{keystr(path)}": tuple(leaf.shape) for path, leaf in leaves if isinstance(leaf, Tensor)}


def add_terms(graph: fx.Graph, node: fx.Node, terms: list[tuple[str, fx.Node]], *, grouped_batch: bool = False) -> None:
    """``y -> y + layer_m(m) + ...``: add read layers to the call `node` of a layer or function.

    Args:
        graph: The graph.
        node: The call itself; what used its result uses the sum afterwards.
        terms: Path of each read layer and the memory view it reads.
        grouped_batch: Whether the batch is grouped into the channels of the call.
    """
    users = list(node.users)
    total = node
    for path, view in terms:
        if node.op == "call_module":
            args, kwargs = with_argument(node, "input", view)
        else:
            args, kwargs = (view,), call_options(options(node))
        with graph.inserting_after(total):
            term = insert_module(graph, path, *args)
            term.kwargs = kwargs
        if grouped_batch:
            with graph.inserting_after(term):
                term = insert_call(graph, group_batch, term, node)
        with graph.inserting_after(term):
            total = insert_call(graph, accumulate, total, term)
    for user in users:
        user.replace_input_with(node, total)


Snapshot = dict[fx.Node, tuple[Any, ...]]


def nodes_differ(graph: fx.Graph, before: Snapshot) -> tuple[set[fx.Node], Snapshot]:
    """The nodes that are new or call something else than in the snapshot, and a snapshot of now."""
    now = {node: (node.op, node.target, node.args, node.kwargs) for node in graph.nodes}
    return {node for node, call in now.items() if before.get(node) != call}, now
