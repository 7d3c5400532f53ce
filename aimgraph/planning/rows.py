"""A plan as the rows of a picture: the network from top to bottom, and each memory as a lane beside it.

The page, the fragment in a notebook and the still picture draw the same rows.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from aimgraph.planning.flow import Step
from aimgraph.planning.gutter import Lines, gutter
from aimgraph.planning.plan import Plan
from aimgraph.planning.reads import MemoryPlan, Read
from aimgraph.planning.tree import Node, tree_of

Weights = Mapping[tuple[str, str], float]
"""(memory, name of a read) -> how much it counts in a picture, such as the norm of its read weight."""


@dataclass(frozen=True)
class Ribbon:
    """What a row reads of a memory.

    Attributes:
        lane: Number of the memory.
        value: Which value of it: 0 for the source, i for the i-th update.
        weight: Its parameters, or what `Weights` says.
        share: Its thickness, above 0 and at most 1: the square root of its weight over the largest one.
        reads: How many read weights it stands for.
    """

    lane: int
    value: int
    weight: float
    share: float
    reads: int


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        key: Tells it from all others.
        parent: Key of the row above in the tree; empty for none.
        depth: How many there are above.
        label: What it is called below that.
        path: All of its name.
        kind: ``input``, ``layer``, ``opaque``, ``join``, ``output``, ``update`` or ``group``.
        name: Class name of the layer, or the operation.
        parts: Whether there are rows below it.
        open: Whether they are shown at first.
        sources: What it takes values from, by their paths.
        shape: Of what it gives.
        layers: Paths of the layers in it.
        skipped: How many of them do not read.
        lines: Of the graph.
        ribbons: What it reads, with all that is in it.
        values: For each memory the value before it, and the value after all that is in it.
        update: (number of the memory, number of the update) of an update.
    """

    key: str
    parent: str
    depth: int
    label: str
    path: str
    kind: str
    name: str
    parts: bool
    open: bool
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    layers: tuple[str, ...]
    skipped: int
    lines: Lines
    ribbons: tuple[Ribbon, ...]
    values: tuple[tuple[int, int], ...]
    update: tuple[int, int] | None = None


def rows_of(plan: Plan, weights: Weights | None = None) -> list[Row]:
    """The rows of a plan, a row before what is in it.

    Args:
        plan: With or without the graph of the base; without one, the reads stand in their order.
        weights: How much each read counts; by default its parameters.
    """
    steps = plan.flow or _listed(plan)
    root = tree_of(steps, _updates(plan, steps))
    return list(_Rows(plan, steps, weights, gutter(root, steps)).below(root))


def _listed(plan: Plan) -> tuple[Step, ...]:
    """Steps of a plan that knows no graph: every layer that reads, in the order of the reads."""
    kinds = {read.site: read.kind for _, read in plan.reads}
    return tuple(Step("layer", path, kind, (), (), (path,)) for path, kind in kinds.items())


def _updates(plan: Plan, steps: Sequence[Step]) -> list[tuple[int, str, int]]:
    place = {node: number for number, step in enumerate(steps) for node in step.nodes}
    found = []
    for memory in plan.memories:
        for number, update in enumerate(memory.updates, start=1):
            behind = next((place[node] for node in update.spot.nodes.values() if node in place), None)
            if behind is not None:
                found.append((behind, memory.name, number))
    return sorted(found)


class _Rows:
    """Makes the rows, in order, and follows the values of the memories."""

    def __init__(self, plan: Plan, steps: Sequence[Step], weights: Weights | None, lines: Mapping[int, Lines]) -> None:
        self.steps, self.lines, self.memories = steps, lines, plan.memories
        self.reads: dict[str, list[tuple[int, Read, float]]] = {}
        for lane, memory in enumerate(plan.memories):
            for read in memory.reads:
                weight = read.parameters if weights is None else weights.get((memory.name, read.name), 0.0)
                self.reads.setdefault(read.site, []).append((lane, read, float(weight)))
        self.squared = weights is not None
        self.values = [0] * len(plan.memories)
        self.count = 0
        whole = [weight for reads in self.reads.values() for _, _, weight in reads]
        self.kinds = {site.path: site.kind for site in plan.sites} | {item.path: item.kind for item in plan.skipped}
        self.largest = max(whole, default=1.0) or 1.0

    def below(self, node: Node, parent: str = "", depth: int = 0) -> Iterator[Row]:
        """The rows of all that is below a node."""
        for child in node.children:
            key, before = f"r{self.count}", tuple(self.values)
            self.count += 1
            if child.update is not None:
                lane = [memory.name for memory in self.memories].index(child.update[0])
                self.values[lane] = child.update[1]
            inside = list(self.below(child, key, depth + 1))
            yield self._row(child, key, parent, depth, tuple(zip(before, self.values, strict=True)))
            yield from inside

    def _row(self, node: Node, key: str, parent: str, depth: int, values: tuple[tuple[int, int], ...]) -> Row:
        numbers = list(node.steps())
        layers = tuple(dict.fromkeys(self._layers(node)))
        sources: tuple[str, ...] = ()
        kind, name, path = "group", "", node.path
        if node.layer:
            kind, name = "layer", self.kinds.get(node.layer, "")
        update: tuple[int, int] | None = None
        if node.step is not None:
            step = self.steps[node.step]
            kind, name = step.kind, step.name
            sources = tuple(self.steps[source].path or self.steps[source].kind for source in step.inputs)
        elif node.update is not None:
            lane = [memory.name for memory in self.memories].index(node.update[0])
            kind, update = "update", (lane, node.update[1])
            made = self.memories[lane].updates[node.update[1] - 1]
            name, path = str(self.memories[lane].config.block), made.spot.where
        shape = self.steps[numbers[-1]].shape if numbers else ()
        skipped = sum(layer not in self.reads for layer in layers)
        ribbons = tuple(self._ribbons(layers))
        lines = self.lines.get(id(node), Lines())
        return Row(
            key, parent, depth, node.label, path, kind, name, bool(node.children), node.open, sources, shape, layers,
            skipped, lines, ribbons, values, update,
        )  # fmt: skip

    def _layers(self, node: Node) -> Iterator[str]:
        """Paths of the layers of a node and of all that is in it."""
        if node.layer:
            yield node.layer
        if node.step is not None:
            yield from self.steps[node.step].layers
        for child in node.children:
            yield from self._layers(child)

    def _ribbons(self, layers: Sequence[str]) -> Iterator[Ribbon]:
        for lane in range(len(self.memories)):
            found = [
                (read, weight) for path in layers for where, read, weight in self.reads.get(path, ()) if where == lane
            ]
            if not found:
                continue
            added = [weight for _, weight in found]
            total = math.hypot(*added) if self.squared else sum(added)
            largest = self.largest if len(found) == 1 else max(self.largest, total)
            values = [first_value(read) for read, _ in found]
            yield Ribbon(lane, min(values), total, max(0.02, math.sqrt(total / largest)), len(found))


def first_value(read: Read) -> int:
    """The value of the memory that the first call of a read reads: 0 for the source, i for the i-th update."""
    return read.calls[0].value if read.calls else 0


def memory_shape(memory: MemoryPlan) -> str:
    """``7 x 7 x 4 = 196 values``."""
    if len(memory.shape) < 2:
        return f"{memory.size:,} values"
    return f"{' x '.join(map(str, memory.shape))} = {memory.size:,} values"
