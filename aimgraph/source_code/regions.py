"""From a graph to calls of modules: which nodes are the forward of which module."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from aimgraph.compiler.node_keys import OWNER
from aimgraph.source_code.constructors import is_of_torch


@dataclass
class Region:
    """The nodes that one call of a module's forward makes.

    Attributes:
        path: Of the module.
        items: Its own nodes, and the calls of modules below it, in order.
        inputs: Nodes outside of it that it uses, in the order of their first use.
        outputs: Nodes in it that others use.
    """

    path: str
    items: list["fx.Node | Region"]
    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)

    def nodes(self) -> list[fx.Node]:
        """All nodes, those of calls below it included."""
        found: list[fx.Node] = []
        for item in self.items:
            found += item.nodes() if isinstance(item, Region) else [item]
        return found


def regions(root: nn.Module, graph: fx.Graph) -> Region:
    """The forward of a root, as calls of the modules below it wherever the graph allows.

    A module is called where all of its nodes stand in one run; else its nodes are the caller's own. `nn.Sequential`
    is called where what it is given goes through its modules alone; its modules are, otherwise.
    """
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    made = _region(root, "", nodes, _in_parts(nodes))
    made.inputs = list(graph.find_nodes(op="placeholder"))
    return made


def _in_parts(nodes: Sequence[fx.Node]) -> set[str]:
    """Paths of modules whose nodes do not stand in one run."""
    found, last = set[str](), dict[str, int]()
    for place, node in enumerate(nodes):
        names = str(node.meta[OWNER]).split(".")
        for path in (".".join(names[:count]) for count in range(1, len(names) + 1)):
            if last.get(path, place - 1) != place - 1:
                found.add(path)
            last[path] = place
    return found


def _region(root: nn.Module, path: str, nodes: Sequence[fx.Node], in_parts: set[str]) -> Region:
    items: list[fx.Node | Region] = []
    for child, run in _runs(root, path, nodes):
        if child is None:
            items += run
            continue
        if child in in_parts:
            items += _region(root, child, run, in_parts).items if _holds_others(root.get_submodule(child)) else run
            continue
        inner = _region(root, child, run, in_parts)
        _bound(inner)
        module = root.get_submodule(child)
        if isinstance(module, nn.Sequential) and not is_chain(inner, module):
            items += inner.items
        else:
            items.append(inner)
    return Region(path, items)


def _holds_others(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _runs(root: nn.Module, path: str, nodes: Sequence[fx.Node]) -> list[tuple[str | None, list[fx.Node]]]:
    """Nodes next to each other that belong to one module right below a path; None for the path's own."""
    found: list[tuple[str | None, list[fx.Node]]] = []
    for node in nodes:
        child = _child(root, path, str(node.meta[OWNER]))
        if found and found[-1][0] == child:
            found[-1][1].append(node)
        else:
            found.append((child, [node]))
    return found


def _child(root: nn.Module, path: str, owner: str) -> str | None:
    """The module below `path` that is called on the way to `owner`; lists of modules are no callers."""
    start = f"{path}." if path else ""
    if not owner.startswith(start) or owner == path:
        return None
    names = owner[len(start) :].split(".")
    for count in range(1, len(names) + 1):
        child = start + ".".join(names[:count])
        module = root.get_submodule(child)
        if isinstance(module, nn.Sequential) or not is_of_torch(module):
            return child
    return None


def _bound(region: Region) -> None:
    """What a region is given, and gives."""
    own = set(region.nodes())
    given = dict.fromkeys(used for node in region.nodes() for used in node.all_input_nodes if used not in own)
    region.inputs = list(given)
    region.outputs = [node for node in region.nodes() if any(user not in own for user in node.users)]


def is_chain(region: Region, module: nn.Sequential) -> bool:
    """Whether what a sequence is given goes through each of its modules, once, and nothing else does."""
    if len(region.inputs) != 1 or len(region.outputs) != 1 or len(region.items) != len(module):
        return False
    value = region.inputs[0]
    for (name, _), item in zip(module.named_children(), region.items, strict=True):
        called = item.path if isinstance(item, Region) else str(item.target)
        given = item.inputs if isinstance(item, Region) else list(item.args)
        plain = isinstance(item, Region) or (item.op == "call_module" and not item.kwargs)
        if not plain or called != f"{region.path}.{name}".lstrip(".") or given != [value]:
            return False
        value = item.outputs[0] if isinstance(item, Region) else item
    return value is region.outputs[0]
