"""Find the tensors that updates read their features from.

Before -> after: the graphs are untouched; the plan gains ``spots``.

``updates="stages"`` takes, of each resolution, the last tensor that every path from the inputs to
the outputs passes through: a dominator of the outputs in the data-flow graph. Inputs and outputs
of the base are no features and are left out. Module paths take what the module returns. Where a
later operation overwrites the tensor in place, that operation's result is taken.

Declines: tensors whose batch dimension is not exactly the batch, or of more than three grid
dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby

import networkx as nx
from torch import fx

from aimgraph.compiler.graph_data import module_path
from aimgraph.compiler.graph_tools import data_flow
from aimgraph.compiler.node_keys import OUTPUT_OF, OVERWRITTEN_BY, SHAPES
from aimgraph.compiler.program import BasePass, PassResult, Program, Stage
from aimgraph.config import AimConfig
from aimgraph.errors import PlanError
from aimgraph.planning.patterns import select_paths
from aimgraph.planning.sites import UpdateSpot
from aimgraph.runtime.call_names import OPAQUE_BASE


@dataclass(frozen=True)
class PlaceUpdates(BasePass):
    """ANALYSED -> ANALYSED, with spots."""

    requires: Stage = Stage.ANALYSED

    def run(self, program: Program) -> PassResult:
        """Fill in ``plan.spots``, in execution order, for every config that asks for updates.

        Raises:
            PlanError: A module path matches nothing, or gives no tensor that can be written from,
                or the train and the eval graph offer different tensors.
        """
        spots: list[UpdateSpot] = []
        for config in program.configs:
            if config.updates is not None:
                found = {name: _find(program, name, graph, config) for name, graph in program.graphs.items()}
                spots += _merge(program, config, found)
        return PassResult(replace(program, plan=replace(program.plan, spots=tuple(spots))), False)


def _find(program: Program, name: str, graph: fx.Graph, config: AimConfig) -> list[UpdateSpot]:
    layout = _Layout(graph, name, program)
    if config.updates == "stages":
        nodes = _stage_ends(graph, layout)
    else:
        assert isinstance(config.updates, tuple)
        nodes = _module_outputs(graph, config.updates, config.name, layout)
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[fx.Node, UpdateSpot] = {}
    for node, where in nodes:
        end = _after_overwrites(node, order)
        spot = layout.spot(end, config.name, where)
        if spot is not None:
            found[end] = spot
    return [found[node] for node in sorted(found, key=lambda n: order[n])]


def _stage_ends(graph: fx.Graph, layout: "_Layout") -> list[tuple[fx.Node, str]]:
    """The last dominator of each resolution, with a description."""
    start, end = "start", graph.output_node()
    outputs = set(end.all_input_nodes)
    walk: nx.DiGraph = data_flow(graph)
    walk.add_edges_from((start, node) for node in graph.find_nodes(op="placeholder"))
    dominator = nx.immediate_dominators(walk, start)
    passed: list[fx.Node] = []
    node = dominator.get(end)
    while isinstance(node, fx.Node):
        passed.append(node)
        node = dominator[node]
    usable = [n for n in reversed(passed) if n not in outputs and n in layout.fed]
    spots = [(n, spot) for n in usable if (spot := layout.spot(n, "", "")) is not None]
    ends = []
    for grid, group in groupby(spots, key=lambda item: _resolution(item[1].grid)):
        last, _ = list(group)[-1]
        at = "x".join(map(str, grid)) or "features"
        ends.append((last, f"{module_path(last) or last.name} ({at})"))
    return ends


def _resolution(grid: tuple[int, ...]) -> tuple[int, ...]:
    """The grid, with every single position counting as no grid at all."""
    return () if all(size == 1 for size in grid) else grid


def _module_outputs(
    graph: fx.Graph, patterns: tuple[str, ...], memory: str, layout: "_Layout"
) -> list[tuple[fx.Node, str]]:
    outputs = [(node, path) for node in graph.nodes for path in node.meta.get(OUTPUT_OF, ())]
    chosen = set(select_paths(patterns, dict.fromkeys(path for _, path in outputs), f"memory {memory!r}: updates"))
    outputs = [(node, path) for node, path in outputs if path in chosen]
    for node, path in outputs:
        if layout.spot(node, "", "") is None:
            shapes = node.meta.get(SHAPES, ("not a tensor",))
            raise PlanError(
                f"memory {memory!r}: the output of {path!r}, {shapes[0]}, can't be written into a memory: "
                "an update needs one batch dimension, one channel dimension and at most three more"
            )
    return outputs


def _after_overwrites(node: fx.Node, order: dict[fx.Node, int]) -> fx.Node:
    """The result of the last operation that overwrites `node` in place; itself if there is none."""
    while True:
        later = [w for w in node.meta.get(OVERWRITTEN_BY, ()) if w is not node and SHAPES in w.meta]
        if not later:
            return node
        node = max(later, key=lambda n: order[n])


class _Layout:
    """Tells which dimensions of a tensor are batch, channels and grid."""

    def __init__(self, graph: fx.Graph, name: str, program: Program) -> None:
        self.name, self.batch = name, program.signature.batch
        calls = ((site, call) for site in program.plan.sites for call in site.calls if call.graph == name)
        self.sites = {call.node: (site, call) for site, call in calls}
        self.flow = data_flow(graph)
        self.sources = {n for n in graph.nodes if n.name in self.sites}
        self.fed: set[fx.Node] = set()  # behind some site
        for node in graph.nodes:
            if node in self.sources or any(source in self.fed for source in self.flow.predecessors(node)):
                self.fed.add(node)

    def spot(self, node: fx.Node, memory: str, where: str) -> UpdateSpot | None:
        """The spot at `node`, or None if no update can read its features there."""
        if SHAPES not in node.meta:
            return None
        shape, other = node.meta[SHAPES]
        varying = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
        if len(varying) != 1 or shape[varying[0]] != self.batch or not 2 <= len(shape) <= 5:
            return None
        channel_axis = self._channel_axis(node, shape, varying[0])
        if channel_axis is None or 0 in shape:
            return None
        grid = tuple(size for axis, size in enumerate(shape) if axis not in (varying[0], channel_axis))
        nodes = {self.name: node.name}
        return UpdateSpot(memory, where, nodes, shape[channel_axis], grid, varying[0], channel_axis)

    def _channel_axis(self, node: fx.Node, shape: tuple[int, ...], batch_axis: int) -> int | None:
        """That of the nearest layer upstream whose output has this rank and these channels."""
        if len(shape) == 2:
            return 1 - batch_axis
        for reverse, end in ((True, 1), (False, 0)):  # what its channels came from, else where they go
            for candidate in self._nearest_sites(node, reverse=reverse):
                site, call = self.sites[candidate.name]
                axis = call.channel_axis
                if len(call.shape) == len(shape) and shape[axis] == site.channels[end] and axis != batch_axis:
                    return axis
        return None

    def _nearest_sites(self, node: fx.Node, *, reverse: bool) -> Iterator[fx.Node]:
        """Calls of sites up or down the data flow, nearest first; `node` itself included."""
        reached = (target for _, target in nx.bfs_edges(self.flow, node, reverse=reverse))
        return (candidate for candidate in chain([node], reached) if candidate in self.sources)


def _merge(program: Program, config: AimConfig, found: dict[str, list[UpdateSpot]]) -> list[UpdateSpot]:
    """The same spots in every graph, under one entry each."""
    first, *others = found.values()
    merged = list(first)
    for spots in others:
        if [replace(spot, nodes={}) for spot in spots] != [replace(spot, nodes={}) for spot in merged]:
            raise PlanError(
                f"memory {config.name!r}: train and eval forward offer different tensors to update from "
                f"({[s.where for s in merged]} and {[s.where for s in spots]}); name module paths in updates="
            )
        merged = [replace(a, nodes=a.nodes | b.nodes) for a, b in zip(merged, spots, strict=True)]
    if not merged and OPAQUE_BASE in program.signature.opaque:
        raise PlanError(
            f"memory {config.name!r}: no tensor to update from: the model can't be traced and is kept as one call, "
            f"inside which there are no updates: {program.signature.opaque[OPAQUE_BASE].reason}; change that code, or "
            'give a part of the model its memory with within="..."'
        )
    if not merged:
        raise PlanError(
            f"memory {config.name!r}: no tensor to update from: no feature lies on every path from the "
            "inputs to the outputs; name module paths in updates="
        )
    return merged
