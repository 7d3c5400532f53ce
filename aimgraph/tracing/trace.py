"""From a module to graphs: one for train and one for eval mode, or a single one where they agree."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from aimgraph.compiler.signature import Classified
from aimgraph.copies import USUAL
from aimgraph.errors import TraceError
from aimgraph.fake.faker import Faker
from aimgraph.fake.operations import Operation
from aimgraph.fake.run import FakeRun
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import NOT_GIVEN, Argument, Arguments, arguments_of
from aimgraph.reproducible import plain_attention
from aimgraph.runtime.call_names import OPAQUE_BASE
from aimgraph.runtime.recompute import checkpoints_entered
from aimgraph.runtime.regions import closed_contexts
from aimgraph.torch_private import tree_flatten
from aimgraph.tracing.patches import (
    autograd_functions_refused,
    functions_on_proxies,
    nothing_hidden,
    parameters_as_proxies,
    posing,
    random_states_refused,
)
from aimgraph.tracing.placeholders import check_placeholder, placeholder_default
from aimgraph.tracing.regions import contexts_recorded, drop_empty_contexts
from aimgraph.tracing.side_effects import kept_attributes, refuse_assigned, unused_randomness, watched_modes
from aimgraph.tracing.tracer import LayerTracer
from aimgraph.tracing.values import RecordFactories
from aimgraph.tracing.watch_calls import names_in
from aimgraph.user_code import place_of


@dataclass(frozen=True)
class Traced:
    """What tracing a module gives.

    Attributes:
        graphs: ``both`` where train and eval graph agree, else ``train`` and ``eval``.
        moded: Paths of entered modules that looked at their `training` flag.
        notes: What the graphs do not keep.
        setters: Paths of entered modules that set attributes of their own.
        runs: Graph -> what each of its nodes gives on the example inputs.
        operations: Mode -> what the nodes of its graph do to tensors.
    """

    graphs: dict[str, fx.Graph]
    moded: tuple[str, ...]
    notes: tuple[str, ...]
    setters: tuple[str, ...]
    runs: dict[str, FakeRun]
    operations: dict[str, list[Operation]]


def trace(
    faker: Faker,
    kinds: dict[nn.Module, Classified],
    inputs: Arguments,
    callers: frozenset[nn.Module] = frozenset(),
    opaque: frozenset[str] = frozenset(),
    in_train: list[Operation] | None = None,
) -> Traced:
    """Trace a module in eval and in train mode; once, where nothing that is entered looks at its mode.

    Flags, attributes and all random states are as before afterwards, whatever the forward does.

    Args:
        faker: Of the module.
        kinds: How each of its convolutions and linear layers can read.
        inputs: Example inputs. Sizes derived from them decide control flow; arguments of
            `forward` that they leave at their defaults become constants, and so do None, flags
            and strings that they give.
        callers: Modules that call a convolution or linear function themselves.
        opaque: Paths of modules that are kept as one call whatever is in them; `OPAQUE_BASE` for the base itself.
        in_train: The operations of the forward in train mode; without them it is traced in both.

    Raises:
        ExampleInputError: The inputs don't fit the forward's signature.
        TraceError: `forward` depends on values that only exist at run time, or draws from Python's or
            numpy's random numbers.
    """
    root = faker.root
    flags = {module: module.training for module in root.modules()}
    merged = _kept_state(root) if _notices_mode(root) else nullcontext()
    tracing = _Tracing(faker, kinds, arguments_of(root, inputs), callers, opaque)
    try:
        with merged:
            graphs = {"eval": tracing.trace("eval")}
            same = not tracing.moded and not _notices_mode(root) and in_train is not None
            if not same or tracing.replay("train", graphs["eval"]) != in_train or tracing.differ("train", "eval"):
                graphs = {"train": tracing.trace("train"), **graphs}
    finally:
        for module, flag in flags.items():
            module.training = flag
    paths = {module: path for path, module in root.named_modules()}
    runs, moded = tracing.runs, tracing.moded
    if "train" not in graphs or _source(graphs["train"]) == _source(graphs["eval"]):
        graphs, runs, moded = {"both": graphs["eval"]}, {"both": runs["eval"]}, {}
    moded_paths = tuple(paths[module] for module in moded if module in paths)
    notes, setters = (tuple(dict.fromkeys(found)) for found in (tracing.notes, tracing.setters))
    return Traced(graphs, moded_paths, notes, setters, runs, tracing.operations)


@dataclass
class _Tracing:
    """Traces one module on one set of inputs, mode after mode.

    Attributes:
        faker: As for `trace`.
        kinds: As for `trace`.
        arguments: Of the module's forward.
        callers: As for `trace`.
        opaque: As for `trace`.
    """

    faker: Faker
    kinds: dict[nn.Module, Classified]
    arguments: list[Argument]
    callers: frozenset[nn.Module]
    opaque: frozenset[str]
    notes: list[str] = field(default_factory=list)
    setters: list[str] = field(default_factory=list)
    moded: dict[nn.Module, None] = field(default_factory=dict)
    runs: dict[str, FakeRun] = field(default_factory=dict)
    operations: dict[str, list[Operation]] = field(default_factory=dict)

    def trace(self, mode: str) -> fx.Graph:
        """The graph of a mode."""
        root = self.faker.root
        root.train(mode == "train")
        run, names = self._started(mode), names_in(root, self.kinds)
        tracer = LayerTracer(self.kinds, self.callers, self.opaque, run, names, self.arguments)
        with (
            self.faker.outside.kept(),
            run.adopted(self.faker.copy(train=mode == "train")),
            kept_attributes(root, self.notes, self.setters),
            unused_randomness(root),
            watched_modes(self.moded, tracer),
        ):
            return _trace_once(root, tracer, self.notes)

    def replay(self, mode: str, graph: fx.Graph) -> list[Operation] | None:
        """What the nodes of a graph do in a mode; None if they don't run in it, which tracing in that mode explains."""
        run = self._started(mode)
        try:
            with quiet(), self.faker.outside.kept():
                run.run(graph)
        except Exception:  # whatever the base's own code raises
            return None
        return run.recorder.operations

    def differ(self, mode: str, other: str) -> bool:
        """Whether anything that is no tensor, or the structure of what a node gives, differs between two modes."""
        one, two = self.runs[mode].values, self.runs[other].values
        return any(_described(one[node]) != _described(two[node]) for node in one if node in two)

    def _started(self, mode: str) -> FakeRun:
        values = {argument.name: argument.passed for argument in self.arguments}
        run = self.runs[mode] = FakeRun(self.faker.root, values, self.faker, train=mode == "train")
        self.operations[mode] = run.recorder.operations
        return run


def _notices_mode(root: nn.Module) -> bool:
    """Whether a module does more than keep a flag when its mode is set."""
    plain = nn.Module.train, nn.Module.eval
    return any(
        (type(module).train, type(module).eval) != plain or not {"train", "eval"}.isdisjoint(vars(module))
        for module in root.modules()
    )


@contextmanager
def _kept_state(root: nn.Module) -> Iterator[None]:
    """Put parameters, buffers and plain attributes back: ``train()`` may merge weights, and take them apart again."""
    tensors = [(tensor, tensor.detach().clone()) for tensor in chain(root.parameters(), root.buffers())]
    plain = [(m, {key: value for key, value in vars(m).items() if type(value) in USUAL}) for m in root.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in tensors:
                if not tensor.is_meta and not torch.equal(tensor, before):
                    tensor.copy_(before)
        for module, attributes in plain:
            vars(module).update(attributes)


def _described(value: Any) -> Any:
    """What a forward can decide by without looking into tensors."""
    leaves, structure = tree_flatten(value)
    return structure, [(type(leaf), *_seen_of(leaf)) for leaf in leaves]


def _seen_of(leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype
    return (leaf if type(leaf) in USUAL or isinstance(leaf, torch.dtype | torch.device) else id(leaf),)


@contextmanager
def _surroundings(tracer: LayerTracer) -> Iterator[None]:
    """What behaves otherwise while a forward is traced."""
    with (
        quiet(),
        closed_contexts(),
        RecordFactories(tracer),
        functions_on_proxies(tracer),
        random_states_refused(tracer),
        parameters_as_proxies(tracer),
        plain_attention(),
        nothing_hidden(),
        contexts_recorded(tracer),
        autograd_functions_refused(),
        checkpoints_entered(tracer.note_checkpoint),
        posing(),
    ):
        yield


def _trace_once(root: nn.Module, tracer: LayerTracer, notes: list[str]) -> fx.Graph:
    if OPAQUE_BASE in tracer.opaque:
        return _whole_graph(tracer)
    try:
        with _surroundings(tracer):
            graph = tracer.trace(root)
            refuse_assigned(root)
        drop_empty_contexts(graph)
    except Exception as error:
        advice = (
            "its forward depends on values that only exist at run time; move that code into a submodule without conv "
            "or linear layers, which is kept as one call"
        )
        raise TraceError(
            f"{type(root).__name__} can't be traced by torch.fx: {error}\n{place_of(error).strip()}: "
            + ("" if isinstance(error, TraceError) else advice),
            where=tracer.failed or "",
        ) from error
    if tracer.checkpoints:
        notes.append(
            "activation checkpointing inside the forward is not kept: values are the same, memory is not saved"
        )
    return graph


def _whole_graph(tracer: LayerTracer) -> fx.Graph:
    """Instead of a trace, one call of the stand-in with the arguments of the root's forward."""
    graph = fx.Graph()
    args: list[fx.Node] = []
    kwargs: dict[str, Any] = {}
    for index, argument in enumerate(tracer.arguments):
        node = graph.create_node("placeholder", argument.name, placeholder_default(tracer.arguments, index))
        if NOT_GIVEN in node.args:
            check_placeholder(graph, node, argument)
            if argument.constant:  # its default has no source: the base has it
                continue
        if argument.keyword:
            kwargs[argument.keyword] = node
        else:
            args.append(node)
    graph.output(graph.create_node("call_module", OPAQUE_BASE, tuple(args), kwargs))
    with quiet():
        tracer.run.run(graph)
    return graph


def _source(graph: fx.Graph) -> str:
    return str(graph.python_code("self").src)
