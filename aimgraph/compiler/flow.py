"""From a traced graph to the steps of `aimgraph.planning.flow`; norms and activations become parts of edges."""

import operator
from collections.abc import Iterable, Mapping

from torch import fx

from aimgraph.compiler.graph_data import owner_of
from aimgraph.compiler.graph_text import target_name
from aimgraph.compiler.node_keys import HAS_TENSORS, OVERWRITTEN_BY, SHAPES
from aimgraph.compiler.signature import Signature
from aimgraph.planning.flow import Step
from aimgraph.planning.sites import Site, Skipped


def flow_of(
    graphs: Mapping[str, fx.Graph], sites: Iterable[Site], skipped: Iterable[Skipped], signature: Signature
) -> tuple[Step, ...]:
    """The steps of one forward, in execution order.

    Args:
        graphs: ``both``, or ``train`` and ``eval``; of two, the steps are those of ``train``.
        sites: Layers that can read.
        skipped: Those that don't.
        signature: Of the base: the modules that are kept as one call, and the two batch sizes.
    """
    name = next(one for one in ("both", "train", *graphs) if one in graphs)
    flow = _Flow(name, tuple(sites), tuple(skipped), signature)
    for node in graphs[name].nodes:
        flow.visit(node)
    return tuple(flow.steps)


class _Flow:
    """The steps up to a node."""

    def __init__(self, graph: str, sites: tuple[Site, ...], skipped: tuple[Skipped, ...], signature: Signature) -> None:
        self.steps: list[Step] = []
        self.sources: dict[fx.Node, frozenset[int]] = {}
        self.opaque, self.skipped = signature.opaque, {item.path: item.kind for item in skipped}
        self.batches = signature.batch, signature.second
        self.sites: dict[str, list[Site]] = {}
        for site in sites:
            for call in site.calls:
                if call.graph == graph:
                    self.sites.setdefault(call.node, []).append(site)

    def visit(self, node: fx.Node) -> None:
        """Note a node: as a step of its own, or as part of the last one."""
        taken = sorted(frozenset().union(*(self.sources[self._as_written(one)] for one in node.all_input_nodes)))
        step = self._step(node, tuple(taken))
        if step is not None:
            self.steps.append(step)
            self.sources[node] = frozenset((len(self.steps) - 1,))
            return
        gives = SHAPES in node.meta or HAS_TENSORS in node.meta
        self.sources[node] = frozenset(taken) if gives else frozenset()
        if self.steps:
            self.steps[-1] = _with_node(self.steps[-1], node.name)

    def _step(self, node: fx.Node, taken: tuple[int, ...]) -> Step | None:
        shape = self._shape(node)
        if node.op == "placeholder":
            return Step("input", str(node.target), "", shape, (), (), (node.name,)) if shape else None
        if node.op == "output":
            return Step("output", "", "", shape, taken, (), (node.name,))
        path, sites = str(node.target), self.sites.get(node.name, [])
        if node.op == "call_module" and path in self.opaque:
            inside = [one for one in self.skipped if one == path or one.startswith(f"{path}.")]
            layers = dict.fromkeys((*(site.path for site in sites), *inside))
            return Step("opaque", path, self.skipped.get(path, ""), shape, taken, tuple(layers), (node.name,))
        if sites:
            return Step("layer", sites[0].path, sites[0].kind, shape, taken, (sites[0].path,), (node.name,))
        if node.op == "call_module" and path in self.skipped:
            return Step("layer", path, self.skipped[path], shape, taken, (path,), (node.name,))
        if shape and len(taken) > 1:
            owner, name = owner_of(node) or "", _operation(node)
            return Step("join", f"{owner}.{name}".removeprefix("."), name, shape, taken, (), (node.name,))
        return None

    def _as_written(self, node: fx.Node) -> fx.Node:
        """The last node so far that has written to what a node gave: the tensor has its values now."""
        writers = [one for one in node.meta.get(OVERWRITTEN_BY, ()) if one in self.sources]
        return writers[-1] if writers else node

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        first, second = node.meta.get(SHAPES, ((), ()))
        batch, larger = self.batches
        shape = []
        for one, other in zip(first, second, strict=True):
            ratio = one // batch
            shape.append(one if one == other else -ratio if (one, other) == (ratio * batch, ratio * larger) else 0)
        return tuple(shape)


def _operation(node: fx.Node) -> str:
    """Name of what a node computes; in place or not is the same."""
    name = target_name(node).strip("_")
    inplace = name.startswith("i") and hasattr(operator, name) and hasattr(operator, name[1:])
    return name[1:] if inplace else name


def _with_node(step: Step, name: str) -> Step:
    return Step(step.kind, step.path, step.name, step.shape, step.inputs, step.layers, (*step.nodes, name))
