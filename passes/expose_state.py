"""Make what a memory starts with, and what it ends with, inputs and outputs of the graph.

Before:  m = source();  ...;  y += layer_m(view(m))                    kind "input"
After:   m = placeholder;  ...;  y = y + layer_m(view(m))

Before:  m0 = source();  ...;  m1 = update(m0, X);  ...                kind "state"
After:   m0 = placeholder;  ...;  output, m1

Before:  m0 = carry(source());  ...;  carry(source(), m1)              kind "state", carried
After:   m0 = source() + s;  ...;  output, s + rate * (mean_B(m1) - source() - s)

Sums of outputs and terms become operators without a decision about the batch, so that one graph takes one memory for
all samples, [1, N], or one for each, [B, N].

Declines: memories of the other kind: "input" leaves those with updates alone, "state" those without.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from aimgraph.compiler.aim_paths import aim_path
from aimgraph.compiler.graph_tools import insert_call, insert_input, output_shapes
from aimgraph.compiler.node_keys import EXPOSED
from aimgraph.compiler.program import BasePass, Changes, PassResult, Program, Stage
from aimgraph.planning.reads import MemoryPlan
from aimgraph.planning.sites import Skipped
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.onnx_ops import ADD_TERM, FIT_TO
from aimgraph.runtime.reads.view import fit
from aimgraph.runtime.state import moved_state

Kind = Literal["input", "state"]


@dataclass(frozen=True)
class Exposed:
    """A memory that the graph is given.

    Attributes:
        memory: Its name.
        kind: ``input`` or ``state``.
        input: Name of the graph's input.
        output: Name of the graph's output; empty for an input that nothing writes.
        values: N.
        rows: ``any``: one row, or one for each sample; ``batch``: one for each sample; ``one``; ``none``: it is [N].
    """

    memory: str
    kind: Kind
    input: str
    output: str
    values: int
    rows: Literal["any", "batch", "one", "none"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its initial value."""
        return (self.values,) if self.rows == "none" else (1, self.values)


def exposable(memory: MemoryPlan, kind: Kind) -> bool:
    """Whether a memory is of a kind: one without updates an input, one with updates a state."""
    return bool(memory.updates) == (kind == "state")


@dataclass(frozen=True)
class ExposeState(BasePass):
    """FOLDED -> EXPORTABLE.

    Args:
        kind: What to expose.
        sizes: Whether the graph is to take other sizes than the example inputs' too.
    """

    kind: Kind | None = None
    sizes: bool = False
    requires: Stage = Stage.FOLDED
    ensures: Stage = Stage.EXPORTABLE

    def run(self, program: Program) -> PassResult:
        """Add the placeholders and outputs, memory by memory."""
        memories = [one for one in program.plan.memories if self.kind and exposable(one, self.kind)]
        changes = Changes()
        for name, graph in program.graphs.items():
            before = output_shapes(program, name)
            values: list[fx.Node] = []
            for memory in memories:
                assert self.kind is not None
                item = described(graph, memory, self.kind)
                changes |= Changes(inputs=frozenset({item.input}))
                values += _expose(program, name, item)
            if values:
                end = graph.output_node()
                end.args = ((end.args[0], tuple(values)),)
                changes |= Changes(outputs=_moved(before, len(values)))
            for node in graph.nodes:
                if node.target is accumulate:
                    node.target = ADD_TERM
                elif node.target is fit and self.sizes:
                    node.target = FIT_TO
        others = [memory for memory in program.plan.memories if memory not in memories]
        skipped = tuple(Skipped(memory.name, "memory", "not of this kind") for memory in others)
        return PassResult(program, True, skipped, changes)


def exposed_in(graph: fx.Graph) -> tuple[Exposed, ...]:
    """The memories that a graph is given, in the order of the plan."""
    return tuple(node.meta[EXPOSED] for node in graph.find_nodes(op="placeholder") if EXPOSED in node.meta)


def _moved(before: Iterable[str], values: int) -> frozenset[str]:
    """What becomes of outputs where ``output`` becomes ``(output, (first, second, ...))``."""
    kept = {f"output[0]{key.removeprefix('output')}" for key in before}
    added = {f"output[1][{number}]" for number in range(values)}
    return frozenset({*before, *kept, *added})


def described(graph: fx.Graph, memory: MemoryPlan, kind: Kind) -> Exposed:
    """How a graph will be given a memory.

    Args:
        graph: The graph, before.
        memory: The memory.
        kind: ``input`` or ``state``.
    """
    taken = {str(node.target) for node in graph.find_nodes(op="placeholder")}
    name = memory.name if kind == "input" else f"{memory.name}_in"
    while name in taken:
        name = f"memory_{name}"
    output = f"{memory.name}_out" if kind == "state" else ""
    rows: Any = "one"
    if kind == "input":
        rows = "any" if memory.reads_rows else "one"
    elif memory.config.carry == "state":
        rows = "none"
    elif memory.config.pool is None:
        rows = "batch"
    return Exposed(memory.name, kind, name, output, memory.size, rows)


def _expose(program: Program, name: str, what: Exposed) -> list[fx.Node]:
    """Give a graph a memory; the values of it that are to be given back."""
    graph, path = program.graphs[name], aim_path(what.memory)
    sources = [node for node in graph.nodes if node.target == f"{path}.source"]
    with torch.no_grad():
        initial: Tensor = program.root.get_submodule(f"{path}.source")()
    given = insert_input(program, name, what.input, initial.reshape(what.shape))
    given.meta[EXPOSED] = what
    if what.rows == "none":
        return _expose_carry(graph, path, given, program.root.get_submodule(f"{path}.carry").rate)
    for node in sources:
        node.replace_all_uses_with(given)
        graph.erase_node(node)
    written = [node for node in graph.nodes if str(node.target).startswith(f"{path}.updates.")]
    return written[-1:] if what.kind == "state" else []


def _expose_carry(graph: fx.Graph, path: str, state: fx.Node, rate: Any) -> list[fx.Node]:
    """The state is read and written in the open."""
    values = []
    for node in [node for node in graph.nodes if node.target == f"{path}.carry"]:
        source, *written = node.args
        with graph.inserting_before(node):
            if not written:
                node.replace_all_uses_with(insert_call(graph, operator.add, source, state))
            else:
                mean = insert_call(graph, torch.mean, written[0], 0)
                first = insert_call(graph, torch.select, source, 0, 0)
                step = insert_call(graph, operator.sub, mean, first)
                moved = insert_call(graph, moved_state, state, step, rate)
                values.append(insert_call(graph, operator.getitem, moved, 0))
        graph.erase_node(node)
    return values
