"""Does a graph do what the forward does when both are called again? Operation by operation, on fake tensors.

A forward may leave something to the next one: a neuron's potential, a cached mask, a state that it resets first. Some
of that is in modules that the graph calls, and goes on there; some is in attributes that the graph does not set.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx, nn

from aimgraph.compiler.signature import Classified
from aimgraph.errors import TraceError
from aimgraph.fake.faker import Faker
from aimgraph.fake.operations import Operation, Source
from aimgraph.fake.run import FakeRun
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import Arguments, bound_arguments
from aimgraph.runtime.call_names import OPAQUE_BASE
from aimgraph.tracing.observe import MODES, Forwards, Observed, surroundings
from aimgraph.tracing.trace import Traced


def check_repeats(
    faker: Faker,
    kinds: dict[nn.Module, Classified],
    traced: Traced,
    observed: dict[str, Observed],
    inputs: tuple[Arguments, Arguments],
) -> None:
    """See that graph and forward do the same at their second call, and at a third one at another batch size.

    Where a second forward was seen to do what the first did, and each module that the graph calls does, too, when it is
    called again, there is nothing that could go on, and the rest is left out.

    Args:
        faker: Of the base.
        kinds: How each of its convolutions and linear layers can read.
        traced: Its graphs.
        observed: Mode -> what the forward does.
        inputs: At the first batch size, and at the second one.

    Raises:
        TraceError: They do not.
    """
    for mode in MODES:
        graph = traced.graphs.get(mode) or traced.graphs["both"]
        if observed[mode].keeps_nothing or graph.find_nodes(op="call_module", target=OPAQUE_BASE):
            continue
        known = traced.runs.get(mode) or traced.runs["both"]
        if not (observed[mode].repeats and _calls_keep_nothing(faker, graph, known, mode)):
            _check_mode(faker, kinds, traced, graph, mode, (inputs[0], *inputs))


def _calls_keep_nothing(faker: Faker, graph: fx.Graph, known: FakeRun, mode: str) -> bool:
    """Whether no module that a graph calls goes on from its last call: each is called twice, on what it was given.

    Args:
        faker: Of the base.
        graph: The graph.
        known: What its nodes give.
        mode: ``train`` or ``eval``.
    """
    called = [(node, faker.root.get_submodule(str(node.target))) for node in graph.find_nodes(op="call_module")]
    nodes = [node for node, module in called if not _keeps_nothing(module)]
    run = FakeRun(faker.root, {}, faker, train=mode == "train")
    run.values, run.recorder = dict(known.values), known.recorder
    first, operations, seen = len(run.recorder.operations), run.recorder.operations, []
    real = {id(part) for path in faker.real for part in faker.root.get_submodule(path).modules()}
    if any(id(part) in real for node, module in called if node in nodes for part in module.modules()):
        return False  # what they keep shows in values alone
    with quiet(), surroundings(faker):
        for node in (*nodes, *nodes):
            start = len(operations)
            run.run_node(node)
            seen.append([operation.take(_own, first, start) for operation in operations[start:]])
    return seen[: len(nodes)] == seen[len(nodes) :]


def _own(source: Source | None, first: int, start: int) -> Source | None:
    """A source of a call's operation: own results are counted from its first, those of other calls stay apart."""
    if source is None or source[0] < first:
        return source
    number, place = source
    return (first + number - start if number >= start else -2 - number), place


def _keeps_nothing(module: nn.Module) -> bool:
    """Whether all that runs in a module is torch's own, of which nothing goes on but in buffers."""
    return all(
        type(part).__module__.startswith("torch.nn.modules.")
        and "forward" not in vars(part)
        and not (part._forward_hooks or part._forward_pre_hooks)
        for part in module.modules()
    )


@dataclass(frozen=True)
class _Call:
    """One of several calls in a row.

    Attributes:
        start: How many operations there were before.
        operations: What it did, as `Recorder.since` gives it.
        error: Why it failed, if it did.
        starts: Of a graph, how many operations there were before each node.
    """

    start: int
    operations: list[Operation]
    error: Exception | None
    starts: dict[fx.Node, int] = field(default_factory=dict)

    @property
    def span(self) -> tuple[int, int]:
        """Where its operations begin among all, and where they end."""
        return self.start, self.start + len(self.operations)


def _check_mode(
    faker: Faker,
    kinds: dict[nn.Module, Classified],
    traced: Traced,
    graph: fx.Graph,
    mode: str,
    inputs: tuple[Arguments, ...],
) -> None:
    forwards = Forwards(faker, kinds, mode)
    run = FakeRun(faker.root, bound_arguments(faker.root, inputs[0]), faker, train=mode == "train")
    forwards.recorder.values = run.recorder.values = True
    with quiet(), surroundings(faker):
        base = _calls_of_base(forwards, inputs)
    with quiet(), surroundings(faker):
        calls = _calls_of_graph(run, graph, inputs)
    for number, (one, other) in enumerate(zip(base, calls, strict=False), start=1):
        if one.error is not None and other.error is not None:
            return  # what neither of them takes
        if (one.operations, one.error is None) == (other.operations, other.error is None):
            continue
        # the first at such inputs: both are alike there, and one that has started anew is like it
        fresh = base[0].operations if number == 2 else other.operations
        goes_on = one.error is not None or forwards.recorder.goes_on(*one.span, fresh)
        if goes_on and traced.setters:
            raise TraceError("its forward reads what the forward before has set", where=traced.setters[0])
        if goes_on or other.error is not None or run.recorder.goes_on(*other.span, fresh):
            raise _refusal(one, other, number)


def _calls_of_base(forwards: Forwards, inputs: Iterable[Arguments]) -> list[_Call]:
    calls = []
    for given in inputs:
        start = len(forwards.recorder.operations)
        seen = forwards.run(given)
        calls.append(_Call(start, seen.operations, seen.error))
    return calls


def _calls_of_graph(run: FakeRun, graph: fx.Graph, inputs: Iterable[Arguments]) -> list[_Call]:
    calls = []
    for given in inputs:
        start, error = len(run.recorder.operations), None
        run.take(bound_arguments(run.root, given))
        try:
            run.run(graph)
        except Exception as failed:  # whatever the base's own code raises; the forward has to raise, too
            error = failed
        calls.append(_Call(start, run.recorder.since(start), error, run.starts))
    return calls


def _refusal(one: _Call, other: _Call, number: int) -> TraceError:
    """What to say of a graph that does something else than the forward at a call, and which module is to be one call.

    Args:
        one: Of the forward.
        other: Of the graph.
        number: Which call.
    """
    pairs = zip(one.operations, other.operations, strict=False)
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one.operations), len(other.operations)))
    nodes, starts = list(other.starts), list(other.starts.values())
    last = len(nodes) if other.error is not None else max(bisect_right(starts, other.start + same), 1)
    node = nodes[last - 1]
    name = node.target if node.op == "call_module" else node.name
    return TraceError(
        f"what {name} keeps from one call to the next is reset, set or read by the forward around it, which a graph "
        f"does not keep: at call {number} it does something else",
        where=_caller(node),
    )


def _caller(node: fx.Node) -> str:
    """Path of the module whose forward has recorded `node`."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    if node.op == "call_module" and stack:
        stack.pop()
    return str(stack[-1]) if stack else ""
