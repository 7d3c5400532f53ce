"""Graphs down to torch's own modules: calls of any other are replaced by what their forwards do."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from aimgraph.compiler.graph_data import owner_of
from aimgraph.compiler.node_keys import OWNER, SHAPES
from aimgraph.compiler.program import Program
from aimgraph.errors import PlanError
from aimgraph.fake.run import mutable
from aimgraph.runtime.call_names import OPAQUE_BASE
from aimgraph.runtime.guards import constant, guard
from aimgraph.runtime.inplace import INPLACE
from aimgraph.source_code.owners import IN_PLACE, NAMED
from aimgraph.source_code.records import without_detours
from aimgraph.torch_private import asserted, tree_map
from aimgraph.tracing.frontend import STAYS, build_program

Kept = Callable[[nn.Module], bool]
"""Whether a module stays one call."""


class Alone(nn.Module):
    """A module with a path.

    Args:
        inner: The module.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, lead: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the module gives; `lead` has as many samples as the batch, which not all arguments need to have."""
        return self.inner(*args, **kwargs)


@dataclass
class Traced:
    """A module as graphs.

    Attributes:
        root: Owner of the modules and tensors.
        graphs: ``train`` and ``eval``.
        values: What the nodes of each give, on fake tensors.
        batch: How many samples the inputs have there.
        opaque: Paths of modules that can't be traced, and stay calls.
        settled: Names of inputs that have one value in all of this.
        grad: Whether its forward differentiates, and runs with gradients recorded only.
    """

    root: nn.Module
    graphs: dict[str, fx.Graph]
    values: dict[str, dict[fx.Node, Any]]
    batch: int
    opaque: set[str] = field(default_factory=set)
    grad: bool = False
    settled: set[str] = field(default_factory=set)


def traced(program: Program, *, imports: bool, at: str = "") -> Traced:
    """Copies of the graphs of a program, for both modes.

    Args:
        program: It is not changed.
        imports: Whether parts that can't be traced may stay calls.
        at: Path of the module that is traced alone, if it is.

    Raises:
        PlanError: A part of it can't be traced, and may not stay a call.
    """
    made = Traced(program.root, {}, {}, program.signature.batch, grad=program.signature.grad)
    for path, part in program.signature.opaque.items():
        if part.reason != STAYS and (not imports or path == OPAQUE_BASE):
            there = at if path == OPAQUE_BASE else _below(at, path, "inner" if at else "")
            raise no_source(there or "the model", part.reason)
        made.opaque.add(path)
    batches = program.signature.batch, program.signature.second
    for mode in ("train", "eval"):
        name = mode if mode in program.graphs else "both"
        made.graphs[mode], made.values[mode] = _copied(program.graphs[name], program.runs[name].values)
        for node in made.graphs[mode].nodes:
            if SHAPES in node.meta:
                first, second = node.meta[SHAPES]
                node.meta[SHAPE] = shape_text(first, second, batches)
    return made


SHAPE = "source_shape"
"""Key in ``node.meta``: ``[B, 64, 56, 56]``, what a node gives."""


def shape_text(first: Sequence[int], second: Sequence[int], batches: tuple[int, int]) -> str:
    """Sizes at two batch sizes as one text: those that go with the batch are ``B``, or ``4 * B``."""
    if len(first) != len(second):
        return ""
    found = []
    for one, other in zip(first, second, strict=True):
        times, rest = divmod(one, batches[0])
        if one == other:
            found.append(str(one))
        elif not rest and other == times * batches[1]:
            found.append("B" if times == 1 else f"{times} * B")
        else:
            found.append("?")
    return f"[{', '.join(found)}]"


def no_source(where: str, reason: str) -> PlanError:
    """The error of a part that can't be traced."""
    return PlanError(
        f"{where} can't be traced, and what can't be has no source: {reason}; the class of a part without a memory may "
        "be imported instead: aimgraph.to_source(..., imports=True)"
    )


def inline(subject: Traced, kept: Kept, parts: Mapping[nn.Module, Traced], *, imports: bool) -> None:
    """Enter every module that is not kept, in the graphs of both modes.

    Args:
        subject: Its graphs are edited.
        kept: Which modules stay calls.
        parts: Modules whose graphs are known.
        imports: Whether parts that can't be traced may stay calls.

    Raises:
        PlanError: A part can't be traced.
        TraceError: The forward of such a module can't be traced.
    """
    inliner = _Inliner(kept, parts, imports)
    for mode, graph in subject.graphs.items():
        inliner.all(subject, mode)
        subject.settled |= {str(node.args[0].target) for node in graph.nodes if _settles(node)}
        without_detours(graph)
        without_questions(graph)
        for node in graph.nodes:
            if node.target in INPLACE and isinstance(subject.values[mode].get(node), Tensor):
                node.meta[IN_PLACE] = True


def _settles(node: fx.Node) -> bool:
    """Whether a node asks whether an input has the one value that it may have."""
    return node.target is constant and bool(node.args[3]) and isinstance(node.args[0], fx.Node)


def _copied(graph: fx.Graph, values: Mapping[fx.Node, Any]) -> tuple[fx.Graph, dict[fx.Node, Any]]:
    """A copy of a graph, and what each of its nodes gives."""
    made, stands = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        stands[node] = made.node_copy(node, lambda used: stands[used])
    return made, {stands[node]: values[node] for node in graph.nodes if node in values}


@dataclass(frozen=True)
class _Inliner:
    kept: Kept
    parts: Mapping[nn.Module, Traced]
    imports: bool
    seen: dict[Any, Traced] = field(default_factory=dict)

    def all(self, subject: Traced, mode: str) -> None:
        """Enter what is not kept, in place; the values of new nodes are added."""
        for node in list(subject.graphs[mode].nodes):
            node.meta[OWNER] = owner_of(node) or ""
            if node.op == "call_module" and node.target not in subject.opaque:
                module = subject.root.get_submodule(str(node.target))
                if not self.kept(module):
                    self._enter(subject, node, module, mode)

    def _enter(self, subject: Traced, node: fx.Node, module: nn.Module, mode: str) -> None:
        """Replace a call by the nodes of the module's own graph."""
        known, path = self.parts.get(module), str(node.target)
        start = "" if known is not None else "inner"
        known = self._alone(subject, node, module, mode) if known is None else known
        self.all(known, mode)
        subject.opaque |= {_below(path, one, start) for one in known.opaque}
        graph, values, gave = subject.graphs[mode], subject.values[mode], known.values[mode]
        stands = _given(node, known.graphs[mode], int(bool(start)))
        with graph.inserting_before(node):
            for one in known.graphs[mode].nodes:
                if one.op == "placeholder":
                    stands[one] = _list_with_name(graph, node, stands.get(one), values)
                    continue
                if one.op == "output":
                    _end(node, fx.map_arg(one.args[0], lambda last: stands[last]))
                    break
                made = stands[one] = graph.node_copy(one, lambda used: stands[used])
                values[made] = gave[one]
                if one.op in ("call_module", "get_attr"):
                    made.target = _below(path, str(one.target), start)
                made.meta[OWNER] = _below(path, str(one.meta[OWNER]), start)
        graph.erase_node(node)

    def _alone(self, subject: Traced, node: fx.Node, module: nn.Module, mode: str) -> Traced:
        """The graphs of a module for what a call gives it; one trace gives those of both modes."""
        values = subject.values[mode]
        args, kwargs = mutable(fx.map_arg((node.args, node.kwargs), lambda one: _example(values[one])))
        inputs = ((torch.zeros(subject.batch), *args), dict(kwargs))
        key = module, repr(tree_map(_told, inputs))
        if key not in self.seen:
            program = build_program(Alone(module), inputs, (), share=True, enter=("", "inner"))
            self.seen[key] = traced(program, imports=self.imports, at=str(node.target))
        return self.seen[key]


def _list_with_name(graph: fx.Graph, call: fx.Node, given: Any, values: dict[fx.Node, Any]) -> Any:
    """A list that is given, as a node: what is called may append to it."""
    if not isinstance(given, list):
        return given
    made = graph.call_function(list, (given,))
    made.meta[OWNER] = call.meta[OWNER]
    values[made] = fx.map_arg(given, lambda one: values[one])
    return made


def _end(call: fx.Node, gives: Any) -> None:
    """Have what a call's graph gives stand for it."""
    if NAMED in call.meta and isinstance(gives, fx.Node):
        gives.meta[NAMED] = call.meta[NAMED]
    call.replace_all_uses_with(gives)


def _given(call: fx.Node, inner: fx.Graph, skip: int) -> dict[fx.Node, Any]:
    """The inputs of a graph, but for the first ones -> what a call gives it."""
    places = list(inner.find_nodes(op="placeholder"))[skip:]
    names = [str(place.target) for place in places]
    if all(name in names for name in call.kwargs):
        given = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
        return {place: given.get(name, *place.args) for place, name in zip(places, names, strict=True)}
    return dict(zip(places, (*call.args, *call.kwargs.values()), strict=False))


def without_questions(graph: fx.Graph) -> None:
    """Take away what a forward asks of sizes and flags, which is settled for the example's; nothing else changes."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("output", "placeholder"):
            continue
        target: Any = node.target
        of_sizes = target in ("size", "dim", "stride", Tensor.size) or getattr(target, "__module__", "") == "_operator"
        plain = node.op == "get_attr" or (of_sizes and target not in _WRITES)
        if target in (guard, constant, asserted, getattr) or plain:
            graph.erase_node(node)


_WRITES = (operator.setitem, operator.delitem, *INPLACE)


def _below(path: str, inner: str, start: str) -> str:
    """``inner.act`` of a module that stands alone as ``inner`` -> ``layer1.norm.act``."""
    if start and (inner == start or inner.startswith(f"{start}.")):
        inner = inner.removeprefix(start).removeprefix(".")
    return f"{path}.{inner}".strip(".")


def _told(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _example(value: Any) -> Any:
    """What a node gave, as numbers."""
    return tree_map(lambda leaf: torch.zeros(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf, value)
