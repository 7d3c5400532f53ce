"""Put each memory's source, reads and widened layers into the graphs: the literal seed form.

Before:  y = layer(x)
After:   m = source()                                  # [1, N]
         v = permute(reshape(pad(m)))                  # [1, k, *S], once per grid
         y = layer over [x ; expand(fit(v, x))] with weight [Wx | Wm]

    y = layer([x ; m]; [Wx | Wm], b)

Grouped layers see [x_g ; m] in every group. The widened layer concatenates its weights when
called; no wider weight is allocated here. Every read shows the source; `insert_updates` moves
the later ones on.

Declines: to widen layers that transform their weight before use, [Wx | Wm] would be transformed as a
whole; and calls of functions, which have no layer to widen. They go straight to the split form,
y = layer(x) + layer_m(m). A module that can't be traced gets the memory's value as one more argument, and
its layers and functions do the same sum where they are called.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from aimgraph.compiler.aim_paths import AIM, CONCAT, OPAQUE, aim_path
from aimgraph.compiler.graph_tools import (
    add_terms,
    argument,
    function_layer,
    insert_call,
    insert_module,
    options,
    site_layer,
    submodule_at,
    with_argument,
)
from aimgraph.compiler.node_keys import ADDED, OPAQUE_READS, READ, VALUE
from aimgraph.compiler.program import BasePass, PassResult, Program, Stage, nodes_by_name
from aimgraph.compiler.signature import FunctionCall, layer_paths
from aimgraph.planning.plan import PlannedCall
from aimgraph.planning.reads import MemoryPlan, Read, ReadCall
from aimgraph.planning.start import start_of
from aimgraph.reproducible import own_stream
from aimgraph.runtime.function_read import FunctionRead
from aimgraph.runtime.layers import ConcatLayer, groups_of, layer_at, stored_weight
from aimgraph.runtime.memory import Memory, moved_like, put_module, put_or_share
from aimgraph.runtime.opaque import OpaqueCall, OpaqueRead, OpaqueReadCall
from aimgraph.runtime.parts import factory_of
from aimgraph.runtime.read_bounds import bounds_of
from aimgraph.runtime.read_layers import read_layer, read_weight
from aimgraph.runtime.reads.view import ViewSpec, expand_batch, fit, interleave, laid_out, read_view
from aimgraph.runtime.specs import ReadSpec, SourceSpec
from aimgraph.runtime.start import Start, zero_memory


@dataclass(frozen=True)
class InsertMemory(BasePass):
    """PLANNED -> MEMORY."""

    requires: Stage = Stage.PLANNED
    ensures: Stage = Stage.MEMORY

    def run(self, program: Program) -> PassResult:
        """Add the modules below ``aim`` and rewrite every planned call."""
        if AIM not in program.root._modules:
            program.root.add_module(AIM, nn.Module())
        aim = program.root.get_submodule(AIM)
        for memory in program.plan.memories:
            aim.add_module(memory.name, build_memory(program, memory))
        for name, graph in program.graphs.items():
            _GraphInserter(program, name, graph).insert()
        return PassResult(program, True)


def build_memory(program: Program, memory: MemoryPlan) -> Memory:
    """Source and read layers of one memory, on the device and in the dtype of its first site."""
    config, start = memory.config, start_of(memory)
    like = weight_at(program, memory.reads[0])
    source = next((one.source for one in program.configs if one.name == config.name), config.source)
    with torch.device("cpu"), own_stream(f"{start.stream}/source"):
        built = Memory(factory_of("source", source)(SourceSpec(memory.shape, start.deviation)))
    built.source.requires_grad_(config.trainable)
    for read in memory.reads:
        put_module(built.reads, read.name, _build_read(program, read, start))
    with torch.device("cpu"), own_stream(f"{start.stream}/views"):
        for read in memory.reads:
            if read.view:
                made = factory_of("read", config.read)(ReadSpec(memory.shape, read.grid))
                put_module(built, read.view.path, made)
    if start.kind == "zero_values":
        zero_memory(built, config.name)
    for part in (built.source, built.views):
        moved_like(part, like)
    return built


def _build_read(program: Program, read: Read, start: Start) -> nn.Module:
    if not read.function:
        return read_layer(layer_at(program.root, read.site), read.channels, start, read.name, raw=read.raw)
    like = weight_at(program, read)
    if isinstance(like, FunctionCall):
        samples = program.signature.batch if read.calls[0].grouped_batch else 1
        layer = function_layer(getattr(F, like.function), like.weight, like.groups, samples)
    else:
        layer = site_layer(program.root, _first_call(program, read), program.signature.batch)
    wm = read_weight(layer, read.channels, start, read.name).to(device=like.device, dtype=like.dtype)
    return FunctionRead(read.kind, nn.Parameter(wm), bounds_of(layer, read.channels))


def weight_at(program: Program, read: Read) -> Tensor | FunctionCall:
    """The weight at a site, or its description inside an opaque module: what is added follows its device and dtype."""
    if not read.function:
        return stored_weight(layer_at(program.root, read.site))
    if read.calls[0].opaque:
        return next(calls.made[read.site][0] for calls in program.signature.calls.values() if read.site in calls.made)
    weight: Tensor = options(_first_call(program, read))["weight"].meta[VALUE]
    return weight


def _first_call(program: Program, read: Read) -> fx.Node:
    """The first call that a read serves."""
    return nodes_by_name(program.graphs[read.calls[0].graph])[read.calls[0].node]


@dataclass
class _GraphInserter:
    """Inserts all memories into one graph."""

    program: Program
    name: str
    graph: fx.Graph
    sources: dict[str, fx.Node] = field(default_factory=dict)

    def insert(self) -> None:
        nodes = nodes_by_name(self.graph)
        with self.graph.inserting_before(next(node for node in self.graph.nodes if node.op != "placeholder")):
            for memory in self.program.plan.memories:
                self.sources[memory.name] = insert_module(self.graph, aim_path(memory.name, "source"))
        views = ViewCache(self.graph)
        for call, reads in self.program.plan.calls_in(self.name).items():
            if reads[0][2].opaque:
                self._enter_opaque_call(nodes[call], reads)
            else:
                self._concat_call(nodes[call], reads, views)

    def _enter_opaque_call(self, node: fx.Node, reads: list[PlannedCall]) -> None:
        """Give a module that is kept as one call the memory, one value for each read weight inside it."""
        root, opaque = self.program.root, str(node.target)
        items: dict[tuple[str, str], list[tuple[Read, ReadCall]]] = {}
        for memory, read, call in reads:
            items.setdefault((memory, read.name), []).append((read, call))
        inside = tuple(
            OpaqueRead(
                calls[0][0].site,
                root.get_submodule(aim_path(memory, "reads", name)),
                tuple(OpaqueReadCall(call.spec, call.mean, call.grouped_batch) for _, call in calls),
                view=root.get_submodule(path) if (path := view_path(memory, calls[0][0])) else None,
            )
            for (memory, name), calls in items.items()
        )
        item = self.program.signature.opaque[opaque]
        layers = layer_paths(root, self.program.kinds)
        built = OpaqueCall(root, opaque, inside, layers, needs_values=item.needs_values, reason=item.reason)
        node.target = put_or_share(root, f"{OPAQUE}.{opaque}", built, lambda one: one.reads == built.reads)
        node.args = ([self.sources[memory] for memory, _ in items], *node.args)
        node.meta[OPAQUE_READS] = [(memory, calls[0][1]) for (memory, _), calls in items.items()]

    def _concat_call(self, node: fx.Node, reads: list[PlannedCall], views: "ViewCache") -> None:
        root, x, spec = self.program.root, argument(node, "input"), reads[0][2].spec
        fitted = []
        for memory, read, call in reads:
            shown = views.view(self.sources[memory], call.spec, view_path(memory, read))
            with self.graph.inserting_before(node):
                fitted.append(insert_call(self.graph, fit, shown, x, spec.channel_axis, spec.batch_axis, call.name))
            fitted[-1].meta[READ] = (memory, node.name)
        paths = [aim_path(memory, "reads", read.name) for memory, read, _ in reads]
        if reads[0][1].raw:
            add_terms(self.graph, node, list(zip(paths, fitted, strict=True)), grouped_batch=reads[0][2].grouped_batch)
            return
        layer = layer_at(root, str(node.target))
        with self.graph.inserting_before(node):
            parts = [insert_call(self.graph, expand_batch, view, x, spec.batch_axis) for view in fitted]
            groups = groups_of(layer)
            joined = (
                insert_call(self.graph, torch.cat, [x, *parts], spec.channel_axis)
                if groups == 1
                else insert_call(self.graph, interleave, x, parts, groups, spec.channel_axis)
            )
        node.target = f"{CONCAT}.{reads[0][1].name}"  # one for every call of the layer
        if not isinstance(submodule_at(root, node.target), ConcatLayer):
            put_module(root, node.target, ConcatLayer(layer, [layer_at(root, path) for path in paths]))
        node.args, node.kwargs = with_argument(node, "input", joined)


@dataclass
class ViewCache:
    """One view node per memory value, layout and module, right behind the value it shows."""

    graph: fx.Graph
    views: dict[tuple[fx.Node, ViewSpec, str], fx.Node] = field(default_factory=dict)

    def view(self, value: fx.Node, spec: ViewSpec, path: str = "") -> fx.Node:
        """The node that shows `value`, [B, N], laid out as `spec` says; by the module at `path`, if there is one."""
        key = value, spec, path
        if key not in self.views:
            with self.graph.inserting_before(value.next):
                first = insert_module(self.graph, path, value) if path else value
                proxy: Any = fx.Proxy(first, _AddedTracer(self.graph))
                shown: Any = laid_out(proxy, spec) if path else read_view(proxy, spec)
            self.views[key] = shown.node
        return self.views[key]


def view_path(memory: str, read: Read) -> str:
    """Path of the module that shows a site its memory; empty if a few operations do."""
    return aim_path(memory, read.view.path) if read.view else ""


class _AddedTracer(fx.proxy.GraphAppendingTracer):
    """Appends what is done to a proxy to the graph, marked as inserted."""

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node: fx.Node = super().create_node(*args, **kwargs)
        node.meta[ADDED] = True
        return node
