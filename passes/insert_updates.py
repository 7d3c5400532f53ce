"""Put updates and carried state into the graphs, and let each later read show the new value.

Before:  m0 = source();  ...  X = ...;  ...  v = view(m0)
After:   m0 = carry(source());  ...  X = ...;  m1 = update(m0, X);  ...  v = view(m1);  ...
         carry(source(), m1)  just before the output

    M_i = U(M_{i-1}, X_i);    state <- (1 - rate) * state + rate * (mean_B M_T - source)

A site reads the memory as of its place in execution order. Sites that can't tell samples apart
read the batch mean, as planned.

Declines: memories without updates.
"""

from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from aimgraph.compiler.aim_paths import aim_path
from aimgraph.compiler.graph_tools import insert_call, insert_module
from aimgraph.compiler.node_keys import OPAQUE_READS, READ
from aimgraph.compiler.program import BasePass, PassResult, Program, Stage, nodes_by_name
from aimgraph.errors import PassError
from aimgraph.passes.insert_memory import ViewCache, view_path, weight_at
from aimgraph.planning.parts import block_spec
from aimgraph.planning.reads import MemoryPlan
from aimgraph.planning.sites import Skipped
from aimgraph.planning.start import start_of
from aimgraph.reproducible import own_stream
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.finite import Report
from aimgraph.runtime.memory import Memory, moved_like
from aimgraph.runtime.parts import factory_of
from aimgraph.runtime.reads.view import batch_mean
from aimgraph.runtime.start import zero_updates
from aimgraph.runtime.state import StateCarry
from aimgraph.runtime.updates.update import update_of


@dataclass(frozen=True)
class InsertUpdates(BasePass):
    """MEMORY -> MEMORY, with updates."""

    requires: Stage = Stage.MEMORY

    def run(self, program: Program) -> PassResult:
        """Add update blocks and state, and rewire the reads that come after an update."""
        updated = [memory for memory in program.plan.memories if memory.updates]
        others = [memory.name for memory in program.plan.memories if not memory.updates]
        skipped = tuple(Skipped(name, "memory", "it has no updates") for name in others)
        for memory in updated:
            _add_modules(program, memory)
        for name, graph in program.graphs.items():
            views = ViewCache(graph)
            for memory in updated:
                _insert(graph, name, memory, views)
            _check_order(graph)
        return PassResult(program, bool(updated), skipped)


def _add_modules(program: Program, memory: MemoryPlan) -> None:
    config = memory.config
    module = program.root.get_submodule(aim_path(memory.name))
    assert isinstance(module, Memory)
    like, report = weight_at(program, memory.reads[0]), Report(memory.name)
    start = start_of(memory)
    with torch.device("cpu"), own_stream(f"{start.stream}/updates"):
        for planned in memory.updates:
            update = update_of(factory_of("block", config.block), block_spec(config, memory.shape, planned.spot))
            update.batch_axis, update.channel_axis = planned.spot.batch_axis, planned.spot.channel_axis
            update.pool, update.report = config.pool, report
            module.updates.append(update)
    if start.kind == "zero_values":
        zero_updates(module, memory.name)
    if config.carry == "state":
        carry = StateCarry(memory.size, config.rate, config.write_in_eval, memory.name)
        carry.report = report
        module.carry = moved_like(carry, like)
    moved_like(module.updates, like)


def _insert(graph: fx.Graph, name: str, memory: MemoryPlan, views: ViewCache) -> None:
    nodes = nodes_by_name(graph)
    source = next(node for node in graph.nodes if node.target == aim_path(memory.name, "source"))
    values = [source]
    if memory.config.carry == "state":
        with graph.inserting_after(source):
            values = [insert_module(graph, aim_path(memory.name, "carry"), source)]
    for index, planned in enumerate(memory.updates):
        features = _with_terms(nodes[planned.spot.nodes[name]])
        with graph.inserting_after(features):
            values.append(insert_module(graph, aim_path(memory.name, "updates", index), values[-1], features))
    fitted = {node.meta[READ]: node for node in graph.nodes if READ in node.meta}
    _give_leaves(graph, memory.name, values)
    for read in memory.reads:
        for call in read.calls:
            if not call.opaque and call.graph == name and values[call.value] is not source:
                value, shown = values[call.value], fitted[memory.name, call.node]
                if call.mean:
                    with graph.inserting_after(value):
                        value = insert_call(graph, batch_mean, value)
                shown.args = (views.view(value, call.spec, view_path(memory.name, read)), *shown.args[1:])
    if memory.config.carry == "state":
        with graph.inserting_before(graph.output_node()):
            samples: list[fx.Node] = []
            if memory.config.pool == "batch":
                last = memory.updates[-1].spot
                samples = [insert_call(graph, torch.Tensor.size, nodes[last.nodes[name]], last.batch_axis)]
            insert_module(graph, aim_path(memory.name, "carry"), source, values[-1], *samples)


def _give_leaves(graph: fx.Graph, memory: str, values: list[fx.Node]) -> None:
    """Give every module that is kept as one call the values that its layers read."""
    for node in graph.nodes:
        reads = node.meta.get(OPAQUE_READS, ())
        if reads:
            given = zip(node.args[0], reads, strict=True)
            shown = [values[call.value] if owner == memory else value for value, (owner, call) in given]
            node.args = (shown, *node.args[1:])


def _with_terms(features: fx.Node) -> fx.Node:
    """The sum with all memory terms where a layer is in split form already."""
    for user in features.users:
        if user.target is accumulate and user.args[0] is features:
            return _with_terms(user)
    return features


def _check_order(graph: fx.Graph) -> None:
    flow: nx.DiGraph[fx.Node] = nx.DiGraph((source, node) for node in graph.nodes for source in node.all_input_nodes)
    if not nx.is_directed_acyclic_graph(flow):
        cycle = [edge[0].name for edge in nx.find_cycle(flow)]
        raise PassError(f"updates close a cycle in the graph: {' -> '.join(cycle)}")
