"""Which module's forward has what a memory adds to a graph, and where in it that stands."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from aimgraph.compiler.aim_paths import is_added, is_read_path
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.compiler.node_keys import OWNER
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.bias_map import BiasMap
from aimgraph.runtime.reads.view import fit
from aimgraph.runtime.updates.update import Update
from aimgraph.source_code.constructors import is_list, is_of_torch

IN_PLACE = "source_in_place"
"""Key in ``node.meta`` of a sum that is written into its first summand, which nothing else uses."""

NESTED = "source_nested"
"""Key in ``node.meta`` of a call that stands inside the one call that uses it."""

NAMED = "source_named"
"""Key in ``node.meta``: what the value is called, one of `WORDS`."""

VIEW = "source_view"
"""Key in ``node.meta`` of what is computed from a memory before it is read."""

WORDS = ("memory", "view")


def give_owners(root: nn.Module, graph: fx.Graph) -> None:
    """Give every node an owner: what was inserted belongs to the module that calls the layer that it is for.

    Views of a memory belong to what makes the memory, and stand right behind that.
    """
    views = _views(root, graph)
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    later, after = dict[fx.Node, str](), ""
    for node in reversed(nodes):
        later[node] = after = after if (own := node.meta.get(OWNER)) is None else str(own)
    before = ""
    for node in nodes:
        if node.meta.get(OWNER) is not None:
            before = str(node.meta[OWNER])
        elif node in views:
            node.meta[OWNER], node.meta[NAMED] = node.all_input_nodes[0].meta[OWNER], "view"
            node.meta[VIEW] = True
        else:
            node.meta[OWNER] = _owner(root, node, before, later[node])
    _gather(views)


def _views(root: nn.Module, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """What is computed from a memory alone, before it is read -> what makes the memory."""
    found, made = dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        of_memory = bool(inputs) and all(one in made for one in inputs)
        if node.op == "call_module" and is_added(str(node.target)) and ".views." not in str(node.target):
            if not is_read_path(str(node.target)) and not isinstance(root.get_submodule(str(node.target)), BiasMap):
                made[node] = node
        elif of_memory and node.meta.get(OWNER) is None and node.op != "output":
            made[node] = found[node] = made[inputs[0]]
    return found


def _gather(views: Mapping[fx.Node, fx.Node]) -> None:
    ends = dict[fx.Node, fx.Node]()
    for node, source in views.items():
        ends.get(source, source).append(node)
        ends[source] = node


def _owner(root: nn.Module, node: fx.Node, before: str, after: str) -> str:
    """The owner of an inserted node.

    Args:
        root: Owner of the modules.
        node: It.
        before: The owner of the last node of the base.
        after: That of the next one.
    """
    target, site = str(node.target), None
    if node.op == "call_module":
        module = root.get_submodule(target)
        if not is_added(target):
            return target.rpartition(".")[0]
        if isinstance(module, Update):
            return owner_of_site(root, f"{_common(before, after)}.")
        site = module.sites[0] if isinstance(module, BiasMap) else target.partition(".reads.")[2]
        return owner_of_site(root, site) if site else ""
    if node.target is fit and len(node.args) > SITE:
        return owner_of_site(root, str(node.args[SITE]))
    return owner_of_site(root, f"{node.all_input_nodes[0].meta[OWNER]}.") if node.target is accumulate else before


SITE = 4
"""The argument of `fit` that names the layer."""


def owner_of_site(root: nn.Module, site: str) -> str:
    """The module with a class whose forward calls a layer, or a function, which is named after its caller."""
    path = site.rpartition(".")[0]
    while path:
        module = submodule_at(root, path)
        if module is not None and not is_list(module) and not is_of_torch(module):
            return path
        path = path.rpartition(".")[0]
    return ""


def _common(one: str, other: str) -> str:
    """The path that two paths begin with."""
    same = []
    for name, also in zip(one.split("."), other.split("."), strict=False):
        if name != also:
            break
        same.append(name)
    return ".".join(same)


def nest(graph: fx.Graph) -> None:
    """Let what is added to a layer's output stand where it is added, and the steps to a view in one line."""
    for node in list(graph.nodes):
        if IN_PLACE in node.meta:
            _nest(node, node.args[1])
        elif VIEW in node.meta and node.next.meta.get(VIEW) and list(node.users) == [node.next]:
            node.meta[NESTED] = True


def _nest(node: fx.Node, used: Any) -> None:
    alone = isinstance(used, fx.Node) and used.op != "get_attr" and len(used.users) == 1 and NAMED not in used.meta
    if not alone or used.meta[OWNER] != node.meta[OWNER]:
        return
    node.prepend(used)
    used.meta[NESTED] = True
    for argument in used.args:
        _nest(used, argument)


def same_shape(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    """Whether a call reshapes or pads something, which nothing else uses, to what it is already.

    Where others use it, gradients of these and of what uses the call would come to be summed in another order.
    """
    (given,) = node.all_input_nodes
    changes = node.target in ("reshape", F.pad) and len(given.users) == 1
    return changes and bool(values[node].shape == values[given].shape)


def of_grid(value: Any, batch_axis: int | None) -> bool:
    """Whether a layer's input has places besides channels and batch."""
    return not isinstance(value, Tensor) or value.dim() - (batch_axis is not None) > 1
