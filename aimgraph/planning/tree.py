"""Steps of a forward, folded by the modules that they belong to: stages that open into blocks, and blocks into layers.

A tree holds the steps in execution order. A module that runs twice, with others in between, is there twice. Long rows
of siblings are folded by the sizes of what they give.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from aimgraph.planning.flow import Step

MOST = 24
"""Children of a node."""

FEW, MANY = 5, 40
"""Fewer rows than that are too few to show at first, more are too many."""


@dataclass
class Node:
    """A step, a module with steps in it, or a number of siblings.

    Attributes:
        path: Of the module, or of the step.
        label: What is shown: the path below that of the node above.
        step: Number of the step; None for a module with steps in it.
        children: Nodes in it, in execution order.
        open: Whether its children are shown at first.
        update: Name of a memory and number of its update, where the node is one.
        layer: Path of a layer inside a module that is one call, where the node is one.
    """

    path: str
    label: str
    step: int | None = None
    children: list["Node"] = field(default_factory=list)
    open: bool = False
    update: tuple[str, int] | None = None
    layer: str = ""

    def steps(self) -> Iterator[int]:
        """Numbers of all steps in it."""
        if self.step is not None:
            yield self.step
        for child in self.children:
            yield from child.steps()


def tree_of(steps: Sequence[Step], updates: Iterable[tuple[int, str, int]] = ()) -> Node:
    """The steps as a tree, opened until it has something to show.

    Args:
        steps: In execution order.
        updates: (number of the step behind which it writes, memory, number of the update), in execution order.
    """
    behind: dict[int, list[tuple[str, int]]] = {}
    for place, memory, number in updates:
        behind.setdefault(place, []).append((memory, number))
    leaves: list[tuple[tuple[str, ...], Node]] = []
    owners = [_owners(step) for step in steps]
    for number, step in enumerate(steps):
        label = step.path.split(".")[-1] if step.path else step.kind
        inside = _inside(step) if step.kind == "opaque" else []
        leaves.append((owners[number], Node(step.path or step.kind, label, number, inside)))
        after = owners[number + 1] if number + 1 < len(steps) else ()
        shared = _common(owners[number], after)
        written = behind.get(number, ())
        leaves += [(shared, Node("", f"update {which}", update=(memory, which))) for memory, which in written]
    root = Node("", "", children=[_folded(node, steps) for node in _grouped(leaves, 0, ())], open=True)
    root.children = _chunked(root.children, steps)
    _name(root)
    _open(root, steps)
    return root


def _inside(step: Step) -> list[Node]:
    """The layers in a module that is one call."""
    paths = [path for path in step.layers if path != step.path]
    return [Node(path, path.removeprefix(f"{step.path}."), layer=path) for path in paths]


def _owners(step: Step) -> tuple[str, ...]:
    """The modules around a step, outermost first; an input and the output stand in none."""
    if step.kind in ("input", "output"):
        return ()
    return tuple(step.path.split(".")[:-1])


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _grouped(leaves: list[tuple[tuple[str, ...], Node]], depth: int, around: tuple[str, ...]) -> list[Node]:
    """Leaves that stand next to each other in one module, as a node of that module."""
    made = []
    for name, members in groupby(leaves, key=lambda leaf: leaf[0][depth] if len(leaf[0]) > depth else None):
        inside = list(members)
        if name is None:
            made += [node for _, node in inside]
        else:
            path = (*around, name)
            made.append(Node(".".join(path), name, children=_grouped(inside, depth + 1, path)))
    return made


def _folded(node: Node, steps: Sequence[Step]) -> Node:
    """A node without modules that hold one thing, and with long rows of children folded."""
    node.children = [_folded(child, steps) for child in node.children]
    if node.step is None and len(node.children) == 1 and node.children[0].update is None:
        (only,) = node.children
        only.label = f"{node.label}.{only.label}"
        return only
    node.children = _chunked(node.children, steps)
    return node


def _chunked(children: list[Node], steps: Sequence[Step]) -> list[Node]:
    """Too many children, as nodes of those that stand next to each other and give maps of one size."""
    if len(children) <= MOST:
        return children
    runs = [list(run) for _, run in groupby(children, key=lambda child: _place(child, steps))]
    if len(runs) > MOST:
        runs = [children]
    pieces = [piece for run in runs for piece in _pieces(run)]
    return _chunked([_chunk(piece) for piece in pieces], steps)


def _pieces(run: list[Node]) -> list[list[Node]]:
    """A run in pieces of about equal length, none longer than half of `MOST`."""
    count = -(-len(run) // (MOST // 2))
    ends = [round(len(run) * i / count) for i in range(count + 1)]
    return [run[start:end] for start, end in pairwise(ends)]


def _chunk(piece: list[Node]) -> Node:
    if len(piece) == 1:
        return piece[0]
    first, last = piece[0].label.split(" … ")[0], piece[-1].label.split(" … ")[-1]
    return Node("", f"{first} … {last}", children=piece)


def _place(node: Node, steps: Sequence[Step]) -> tuple[object, ...]:
    """What siblings have in common that are folded together: the size of what they give; ends stay by themselves."""
    end = node.step is not None and steps[node.step].kind in ("input", "output")
    return (steps[node.step].kind,) if end and node.step is not None else _size(node, steps)


def _size(node: Node, steps: Sequence[Step]) -> tuple[int, ...]:
    """Of the map that the last step of a node gives: a tensor's shape without batch and channels."""
    shape = steps[last].shape if (last := max(node.steps(), default=-1)) >= 0 else ()
    return shape[2:] if len(shape) > 3 else ()


def _open(root: Node, steps: Sequence[Step]) -> None:
    """Open a level of nodes at a time, until there are enough to see."""
    shown = list(root.children)
    while sum(_counts(node, steps) for node in shown) < FEW:
        closed = [node for node in shown if node.children]
        more = sum(len(node.children) for node in closed)
        if not closed or len(shown) + more > MANY:
            return
        for node in closed:
            node.open = True
        shown = [child for node in shown for child in (node.children or [node])]


def _name(node: Node) -> None:
    """Give modules that are numbers the name of what they are numbered in: ``blocks.3`` in place of ``3``."""
    for child in node.children:
        if child.path and child.label.split(".")[0].isdigit():
            names = child.path.split(".")
            start = len(names) - len(child.label.split("."))
            while start > 0 and names[start].isdigit():
                start -= 1
            child.label = ".".join(names[start:])
        _name(child)


def _counts(node: Node, steps: Sequence[Step]) -> bool:
    """Whether a node is more than an end of the graph, a place where branches meet, or an update."""
    return bool(node.children) or (node.step is not None and steps[node.step].kind in ("layer", "opaque"))
