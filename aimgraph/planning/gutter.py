"""Lines beside the rows of a tree: which row takes what another one gives, as far as both have the same node above.

An edge of the graph is drawn between the two siblings that hold its ends, so that the lines of a row are the same
whatever else is open or closed. Siblings stand on one line, the spine. Edges to the next sibling follow it, others bend
to a column left of it; edges of one source share a column. Columns come from a colouring of the intervals that are in
each other's way (`networkx.greedy_color`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import networkx as nx

from aimgraph.planning.flow import Step
from aimgraph.planning.tree import Node

COLUMN, INDENT, EDGE = 8.0, 13.0, 9.0
"""Distances in pixels: of two columns, of a node's spine and its children's columns, and of the first from the left."""

MOST_COLUMNS = 6
"""Of one node; where edges need more, the longest ones share the last."""

Stroke = tuple[tuple[float, float], ...]
"""A line, two points, or a cubic curve, four; y runs from 0, the upper edge of a row, to 1."""


@dataclass
class Lines:
    """The lines of a row.

    Attributes:
        x: Of its node.
        always: Lines that are always there.
        opened: Those that are there while it is open.
    """

    x: float = EDGE
    always: list[Stroke] = field(default_factory=list)
    opened: list[Stroke] = field(default_factory=list)


Edges = dict[int, dict[int, set[int]]]
"""Node (its id) -> place of a child -> places of children that take what it gives; -1 is what stands outside."""


def gutter(root: Node, steps: Sequence[Step]) -> dict[int, Lines]:
    """The lines of every node of a tree, by its id."""
    edges, lines = _lifted(root, steps), dict[int, Lines]()
    _lay(root, edges, EDGE, [], lines)
    return lines


def _lifted(root: Node, steps: Sequence[Step]) -> Edges:
    """Every edge of the steps, lifted to the children of the innermost node that holds both ends."""
    above: dict[int, list[tuple[Node, int]]] = {}
    _trace(root, [], above)
    edges: Edges = {}
    for number, step in enumerate(steps):
        for source in step.inputs:
            start, end = above[source], above[number]
            depth = next(i for i, (a, b) in enumerate(zip(start, end, strict=False)) if a[1] != b[1])
            _join(edges, end[depth][0], start[depth][1], end[depth][1])
            for node, place in end[depth + 1 :]:
                _join(edges, node, -1, place)
    return edges


def _trace(node: Node, path: list[tuple[Node, int]], found: dict[int, list[tuple[Node, int]]]) -> None:
    """For every step the nodes around it, each with the place of the child that holds the step."""
    if node.step is not None:
        found[node.step] = path
    for place, child in _placed(node):
        _trace(child, [*path, (node, place)], found)


def _placed(node: Node) -> Iterator[tuple[int, Node]]:
    """The children with their places; an update has that of the sibling before it, because no edge ends there."""
    place = -1
    for child in node.children:
        place += child.update is None
        yield place, child


def _join(edges: Edges, node: Node, start: int, end: int) -> None:
    edges.setdefault(id(node), {}).setdefault(start, set()).add(end)


@dataclass(frozen=True)
class _Arc:
    """The edges of one source that do not follow the spine.

    Attributes:
        source: Place of a child, or -1.
        targets: Places of children.
        column: From 0, next to the spine.
    """

    source: int
    targets: frozenset[int]
    column: int

    @property
    def last(self) -> int:
        return max(self.targets)


def _arcs(edges: dict[int, set[int]]) -> list[_Arc]:
    far = {source: frozenset(end for end in ends if end != source + 1) for source, ends in edges.items()}
    spans = {source: (source, max(ends)) for source, ends in far.items() if ends}
    graph = nx.Graph()
    graph.add_nodes_from(spans)
    graph.add_edges_from(
        (one, other)
        for one, (start, end) in spans.items()
        for other, (first, last) in spans.items()
        if one < other and first < end and start < last
    )
    short_first = sorted(spans, key=lambda source: spans[source][1] - spans[source][0])
    columns = nx.greedy_color(graph, strategy=lambda *_: short_first)
    return [_Arc(source, far[source], min(columns[source], MOST_COLUMNS - 1)) for source in sorted(spans)]


def _lay(node: Node, edges: Edges, left: float, passing: list[float], lines: dict[int, Lines]) -> None:
    """Draw the children of a node.

    Args:
        node: Whose children.
        edges: All there are.
        left: x of the first column.
        passing: x of the lines of nodes above that pass all its rows.
        lines: Where to put them.
    """
    mine = edges.get(id(node), {})
    arcs = _arcs(mine)
    width = 1 + max((arc.column for arc in arcs), default=-1)
    spine = left + COLUMN * width
    if (header := lines.get(id(node))) is not None:
        header.opened += _leaving(-1, header.x, spine, mine, arcs)
    for place, child in _placed(node):
        made = lines[id(child)] = Lines(spine)
        beside = [spine - COLUMN * (arc.column + 1) for arc in arcs if arc.source <= place < arc.last]
        below = [*passing, *beside, *([spine] if _follows(mine, place) else [])]
        if child.update is not None:
            made.x = spine + INDENT
            made.always += [_straight(x) for x in below]
            made.always.append(_bend((made.x, 0.5), (spine, 0.0)))
            continue
        made.always += [_straight(x) for x in passing]
        made.always += list(_strokes(place, spine, mine, arcs))
        _lay(child, edges, spine + INDENT, below, lines)


def _follows(edges: dict[int, set[int]], place: int) -> bool:
    return place + 1 in edges.get(place, ())


def _leaving(place: int, x: float, spine: float, edges: dict[int, set[int]], arcs: list[_Arc]) -> list[Stroke]:
    """Lines from the node at `x` down to the lower edge of its row."""
    ends = [spine - COLUMN * (arc.column + 1) for arc in arcs if arc.source == place]
    ends += [spine] if _follows(edges, place) else []
    return [_bend((x, 0.5), (end, 1.0)) for end in ends]


def _strokes(place: int, spine: float, edges: dict[int, set[int]], arcs: list[_Arc]) -> Iterator[Stroke]:
    """The lines of one child among its siblings."""
    if _follows(edges, place - 1):
        yield (spine, 0.0), (spine, 0.5)
    yield from _leaving(place, spine, spine, edges, arcs)
    for arc in arcs:
        x = spine - COLUMN * (arc.column + 1)
        if place in arc.targets:
            yield _bend((spine, 0.5), (x, 0.0))
        if arc.source < place < arc.last:
            yield _straight(x)


def _straight(x: float) -> Stroke:
    return (x, 0.0), (x, 1.0)


def _bend(start: tuple[float, float], end: tuple[float, float]) -> Stroke:
    """A straight line, or a curve that leaves sideways and arrives upright."""
    if start[0] == end[0]:
        return start, end
    return start, ((start[0] + end[0]) / 2, start[1]), (end[0], (start[1] + end[1]) / 2), end
