"""From a base to a program: copy, trace, and derive the shapes of every node at two batch sizes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from aimgraph.compiler.node_keys import AIM, BY_BATCH, DECIDES, NUMBERS, SHAPES
from aimgraph.compiler.program import Program
from aimgraph.compiler.signature import LayerKind, Opaque, Signature
from aimgraph.config import AimConfig
from aimgraph.copies import copy_module
from aimgraph.errors import AimgraphError, ExampleInputError, PlanError, TraceError
from aimgraph.faithful import MODES, Observed, check_faithful, check_forgets, observe
from aimgraph.fake.faker import Faker
from aimgraph.fake.leftovers import Outside
from aimgraph.fake.operations import Operation, Recorder
from aimgraph.fake.run import FakeRun
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import Arguments, bound_arguments, hidden_tensors
from aimgraph.inputs.batch import batch_size, example_batch, with_batch, with_rows
from aimgraph.layers import classify_layers
from aimgraph.planning.plan import Plan
from aimgraph.runtime.call_names import WHOLE
from aimgraph.runtime.guards import DecisionError, decided
from aimgraph.runtime.layers import is_layer
from aimgraph.runtime.memory import put_module
from aimgraph.runtime.opaque import Whole
from aimgraph.tracing import Traced, trace
from aimgraph.user_code import place_of
from aimgraph.wrappers import check_wrapped

RESERVED = (
    *(
        "graph",
        "code",
        "meta",
        "recompile",
        "_graph",
        "_code",
        "_record",
        "shape_env",
        "_lineno_map",
        "_prologue_start",
    ),
    *("_tracer_cls", "_tracer_extras", "_replace_hooks", "_create_node_hooks", "_erase_node_hooks", "_deepcopy_hooks"),
)
"""Names that a torch.fx.GraphModule needs for itself."""


_METHODS = ("reset_memory", "add_memory_set", "remove_memory_set", "memory_sets", "memory_set", "use", "using")
"""Methods and properties of an `aimgraph.AimModule`, which its graph would find in place of members of the base."""


_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
    "torch.nn.quantized",
    "torch.nn.intrinsic.quantized",
)
"""Modules of torch whose weights are packed integers; dynamic ones take and give floats."""


_REFUSED: dict[type[nn.Module], str] = {
    torch.jit.ScriptModule: "{} is a scripted model, which torch.fx can't trace: transform the original module",
    fx.GraphModule: "the model is a torch.fx.GraphModule itself ({}): transform the module that it was traced from",
}


def build_program(
    base: nn.Module,
    inputs: Arguments,
    configs: tuple[AimConfig, ...],
    *,
    share: bool,
    outside: Outside | None = None,
) -> Program:
    """Copy and trace `base`.

    Args:
        base: The model; it is not changed.
        inputs: Example positional and keyword inputs.
        configs: One per memory, with distinct names.
        share: Whether the copy shares the base's parameters and buffers.
        outside: What is known of the base's classes already.

    Raises:
        PlanError: The base is of a kind that can't be transformed, or uses a reserved name.
        TraceError: The base can't be traced.
        ExampleInputError: The base doesn't run on `inputs`.
    """
    check_base(base)
    root = clone(base, share=share)
    kinds = classify_layers(root)
    batch = example_batch(inputs)
    bound_arguments(root, inputs)  # says so where they don't fit the forward
    sample = with_batch(inputs, batch_size(inputs), batch)
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    found = _trace_around(root, kinds, sample, inputs, Outside(root) if outside is None else outside.of_copy(root))
    traced, observed, inputs = found.traced, found.observed, found.inputs
    graphs = traced.graphs
    signature = Signature(
        model=type(base).__name__,
        placeholders={name: _placeholders(graph) for name, graph in graphs.items()},
        parameters=tuple(chain(_names(root.named_parameters), _names(root.named_buffers))),
        inputs=tuple(tuple(tensor.shape) for tensor in tensors),
        batch=example_batch(inputs),
        moded=traced.moded,
        example=inputs,
        calls={mode: seen.calls for mode, seen in observed.items()},
        again={mode: seen.calls for mode, seen in found.again.items()},
        opaque={path or WHOLE: item for path, item in found.opaque.items()},
    )
    parameters = sum(parameter.numel() for parameter in root.parameters())
    notes = (*traced.notes, *_notes(graphs), *_kept(root, found.opaque))
    plan = Plan(signature.model, signature.inputs, parameters, layers=0, notes=notes)
    return Program(root, graphs, kinds, found.runs, signature, configs, plan)


@dataclass(frozen=True)
class _Found:
    """A base that is traced as far as it can be.

    Attributes:
        traced: Its graphs.
        observed: What the base does on the sample.
        opaque: What is kept as one call.
        inputs: The inputs at the first of the batch sizes that shapes are derived at.
        runs: Graph -> what its nodes give there.
        again: What the base does at the second one, in the modes that matter.
    """

    traced: Traced
    observed: dict[str, Observed]
    opaque: dict[str, Opaque]
    inputs: Arguments
    runs: dict[str, FakeRun]
    again: dict[str, Observed]


def _trace_around(
    root: nn.Module, kinds: dict[nn.Module, LayerKind], sample: Arguments, inputs: Arguments, outside: Outside
) -> _Found:
    """Trace `root`; a module that can't be traced becomes one call, the innermost one first.

    Args:
        root: The base.
        kinds: The kind of each of its convolutions and linear layers.
        sample: Inputs to trace it with.
        inputs: The example inputs.
        outside: Of the base.

    Raises:
        ExampleInputError: It does not run at a second batch size.
        TraceError: Not even the base as one call can be traced.
    """
    opaque: dict[str, Opaque] = {}
    while True:
        faker = Faker(root, frozenset(path for path, item in opaque.items() if item.needs_values), outside)
        places = frozenset(path or WHOLE for path in opaque)
        observed = observe(faker, kinds, sample, leaves=places)
        failed = next((seen for seen in observed.values() if seen.error is not None), None)
        if failed is not None and _keep(root, opaque, failed.calls.failed or "", failed.error, needs_values=True):
            continue
        if failed is not None:
            raise _refusal(root, sample, failed.error)
        callers = {path for seen in observed.values() for path in seen.calls.callers}
        try:
            entered = frozenset(map(root.get_submodule, callers))
            traced = trace(faker, kinds, sample, entered, places, observed["train"].operations)
        except TraceError as error:
            if _keep(root, opaque, error.where or "", error, needs_values=False):
                continue
            raise
        try:
            sources = _draws_nothing(traced.runs) and WHOLE not in places
            check_faithful(root, traced.operations, observed, batch_size(sample), sources=sources)
            check_forgets(faker, sample, traced.setters)
            canonical, runs, operations = canonical_inputs(faker, traced, sample, inputs)
            larger = example_batch(canonical) + 1
            modes = MODES if opaque else operations
            again = observe(faker, kinds, with_batch(canonical, batch_size(canonical), larger), modes, places)
            check_faithful(root, operations, again, larger, sources=sources and _draws_nothing(runs))
            _check_one_sample(faker, traced, canonical)
        except TraceError as error:
            if _keep(root, opaque, error.where or "", error, needs_values=False):
                continue
            raise
        except ExampleInputError as error:
            larger_ones = with_batch(inputs, batch_size(inputs), example_batch(inputs) + 1)
            if _keep_larger(root, opaque, observe(faker, kinds, larger_ones), error):
                continue
            raise
        return _Found(traced, observed, opaque, canonical, runs, again)


def _draws_nothing(runs: dict[str, FakeRun]) -> bool:
    """Whether no module that is one call draws from Python's random numbers, which may choose between tensors."""
    return not any(run.draws for run in runs.values())


def _check_one_sample(faker: Faker, traced: Traced, inputs: Arguments) -> None:
    """Where a forward decides something by the batch size, see that one sample leads to the same.

    Raises:
        TraceError: It does not.
    """
    graph = traced.graphs.get("both") or traced.graphs["eval"]
    asked = [node for node in graph.nodes if node.target is decided]
    if not any(_depends_on_batch(node) for node in asked):
        return
    single = FakeRun(faker.root, bound_arguments(faker.root, with_batch(inputs, batch_size(inputs), 1)), faker)
    try:
        with quiet():
            single.run(graph)
    except DecisionError as error:
        raise TraceError(str(error), where=_decider(graph, single)) from error
    except Exception:  # whatever the base raises on one sample, which some refuse
        return


def _decider(graph: fx.Graph, run: FakeRun) -> str:
    """Path of the module that asked what the run has refused to answer."""
    node = next(node for node in graph.nodes if node not in run.values)
    return str(node.meta.get(DECIDES, ""))


def _depends_on_batch(node: fx.Node) -> bool:
    """Whether a number that `node` is computed from changes with the batch size."""
    waiting, seen = list(node.all_input_nodes), set()
    while waiting:
        node = waiting.pop()
        if BY_BATCH in node.meta:
            return True
        if SHAPES not in node.meta and node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return False


def _keep_larger(
    root: nn.Module, opaque: dict[str, Opaque], larger: dict[str, Observed], error: ExampleInputError
) -> bool:
    """Note what has to be one call where a graph fails on one sample more; whether there is anything.

    The whole base if it takes one sample more itself, and what depends on values only then.
    """
    failed = next((seen for seen in larger.values() if seen.error is not None), None)
    if failed is None:
        return _keep(root, opaque, "", error, needs_values=False)
    if isinstance(failed.error, DataDependentOutputException | DynamicOutputShapeException):
        return _keep(root, opaque, failed.calls.failed or "", failed.error, needs_values=True)
    return False


def _refusal(root: nn.Module, sample: Arguments, error: Exception | None) -> AimgraphError:
    """The base's forward does not run, not even where it is given values."""
    name = type(root).__name__
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return TraceError(
            f"{name} can't be traced: {_told(error)}; on the meta device there are no values to decide by: "
            "transform the model on another device"
        )
    return ExampleInputError(
        f"{name} does not run on inputs of shapes {[list(shape) for shape in _shapes(sample)]} at batch size "
        f"{batch_size(sample)} (the first dimension is taken as the batch): {error}{hidden_tensors(sample)}. It has to "
        "run in train and in eval mode; where only a part of it takes tensors alone (the backbone of a detector), give "
        'that part the memory: within="backbone", with example inputs of its own'
    )


def _keep(
    root: nn.Module, opaque: dict[str, Opaque], path: str, error: Exception | None, *, needs_values: bool
) -> bool:
    """Note a module as opaque, or the next one around it that is not yet; whether there is one."""
    while not _keep_one(root, opaque, path, error, needs_values=needs_values):
        if not path:
            return False
        path = path.rpartition(".")[0]
    return True


def _keep_one(
    root: nn.Module, opaque: dict[str, Opaque], path: str, error: Exception | None, *, needs_values: bool
) -> bool:
    known = opaque.get(path)
    if known is not None and (known.needs_values or not needs_values):
        return False
    if needs_values and any(parameter.is_meta for parameter in root.parameters()):
        return False  # there are no values to run it on
    reason = known.reason if known is not None else _told(error)
    opaque[path] = Opaque(path, reason, needs_values)
    if not path:
        put_module(root, WHOLE, Whole(root, needs_values=needs_values))
    return True


def _told(error: Exception | None) -> str:
    """Why a module can't be traced, in one line with the place in its code."""
    cause = error.__cause__ if isinstance(error, TraceError) and error.__cause__ is not None else error
    assert cause is not None
    what = str(cause).strip().partition("\n")[0] or type(cause).__name__
    if isinstance(cause, DataDependentOutputException | DynamicOutputShapeException):
        what = f"what it does depends on the value of a tensor ({what})"
    return f"{what}{place_of(cause)}"


def _kept(root: nn.Module, opaque: dict[str, Opaque]) -> list[str]:
    return [
        f"{path or 'the model'} ({type(root.get_submodule(path)).__name__}) can't be traced and is kept as one call, "
        f"inside which its layers read: {item.reason}"
        for path, item in opaque.items()
        if any(map(is_layer, root.get_submodule(path).modules()))
    ]


def check_base(base: nn.Module) -> None:
    """Refuse what can't be transformed.

    Raises:
        PlanError: Wrapped, sharded, quantised, scripted, transformed already, or with reserved names.
    """
    kind = type(base).__name__
    if not isinstance(base, nn.Module):
        raise PlanError(f"a torch.nn.Module is needed, this is a {kind}")
    check_wrapped(base)
    for path, module in base.named_modules():
        _check_submodule(path, module)
    for wrapper, message in _REFUSED.items():
        if isinstance(base, wrapper):
            raise PlanError(message.format(kind))
    if is_layer(base):
        raise PlanError(
            f"the model is a single {kind}: wrap it, torch.nn.Sequential(model), so that the layer has a path"
        )
    if "forward" in vars(base):
        raise PlanError(f"forward of this {kind} was replaced on the instance: define it in a class, e.g. a subclass")
    if type(base).__call__ is not nn.Module.__call__:
        raise PlanError(f"{kind} has a __call__ of its own, and a transform keeps its forward: define that instead")
    _check_names(base, kind)


def _check_names(base: nn.Module, kind: str) -> None:
    members = {*base._modules, *base._parameters, *base._buffers}
    held = {*members, *vars(base)}
    if AIM in held:
        raise PlanError(f"{kind} has a member named {AIM!r}, where a transform puts what it adds: rename it")
    shadowed = [name for name in _METHODS if name in members]
    if shadowed:
        raise PlanError(f"{kind} has members named {shadowed}, as methods of a transformed module are: rename them")
    taken = [name for name in RESERVED if name in held]
    if taken:
        raise PlanError(f"{kind} has members named {taken}, which a torch.fx.GraphModule keeps for itself: rename them")


def _check_submodule(path: str, module: nn.Module) -> None:
    if "_orig_mod" in module._modules:  # by name: importing the compiler takes seconds
        what = f"its submodule {path!r}" if path else f"the model ({type(module).__name__})"
        instead = f"the model with {path}._orig_mod in its place" if path else "model._orig_mod"
        raise PlanError(f"{what} is compiled: transform {instead}, then compile the result, or parts of it")
    if isinstance(module, fx.GraphModule) and AIM in module._modules:
        place = f"its submodule {path!r}" if path else "the model"
        raise PlanError(
            f"{place} is transformed already: use aimgraph.strip to get the base back, and give one "
            "transform all memories as a list of configs"
        )
    kind = type(module).__module__
    if kind.startswith(_QUANTISED) and "dynamic" not in kind and hasattr(module, "zero_point"):
        raise PlanError(
            f"{path or 'the model'} ({type(module).__name__}) is quantised: its weight is packed integers, which no "
            "memory can be added to; transform the float model, train its memory, and quantise afterwards"
        )
    if any(isinstance(tensor, UninitializedParameter | UninitializedBuffer) for tensor in _own_tensors(module)):
        raise PlanError(f"{path} ({type(module).__name__}) has no shape yet: run the model once first")


def _own_tensors(module: nn.Module) -> Iterator[Tensor | None]:
    yield from module._parameters.values()
    yield from module._buffers.values()


def clone(base: nn.Module, *, share: bool) -> nn.Module:
    """A copy of `base`; with `share`, of its structure only, around the same parameters and buffers.

    Raises:
        PlanError: The base can't be copied.
    """
    memo: dict[int, Any] = {}
    if share:
        memo = {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())}
    try:
        return copy_module(base, memo)
    except Exception as error:  # whatever copy hooks of the base's members raise
        raise PlanError(f"{type(base).__name__} can't be copied by copy.deepcopy: {error}".split("\n")[0]) from error


def canonical_inputs(
    faker: Faker, traced: Traced, sample: Arguments, inputs: Arguments
) -> tuple[Arguments, dict[str, FakeRun], dict[str, list[Operation]]]:
    """The inputs at a batch size that tells the batch from everything else, and the shapes they lead to.

    Beside them, what `derive_shapes` gives.

    Which tensors carry the batch is found by trying: all whose first dimension has the size of the
    first tensor's, or, if the base does not run with these at another size, the first one alone. The
    batch size of the result is the first dimension of no tensor without a batch.

    Args:
        faker: Of the base.
        traced: Its graphs, with what they gave on `sample`.
        sample: The inputs that it was traced with.
        inputs: The example inputs.

    Raises:
        ExampleInputError: The base runs with neither at a second batch size.
    """
    size = batch_size(inputs)
    leaves, spec = tree_flatten(inputs)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()]
    alike = [i for i in tensors if leaves[i].shape[0] == size]
    refusal: ExampleInputError | None = None
    for chosen in (alike, tensors[:1]):
        others = {leaves[i].shape[0] for i in tensors if i not in chosen}
        batch = next(b for b in chain([max(size, 2)], count(2)) if b not in others and b + 1 not in others)
        resized = [
            with_rows(leaf, batch) if i in chosen and leaf.shape[0] != batch else leaf for i, leaf in enumerate(leaves)
        ]
        candidate: Arguments = tree_unflatten(resized, spec)
        try:
            runs = traced.runs if _shapes(candidate) == _shapes(sample) else {}
            return (candidate, *derive_shapes(faker, traced.graphs, candidate, runs))
        except ExampleInputError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _shapes(inputs: Arguments) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def derive_shapes(
    faker: Faker, graphs: dict[str, fx.Graph], inputs: Arguments, first: dict[str, FakeRun]
) -> tuple[dict[str, FakeRun], dict[str, list[Operation]]]:
    """Note on every node its fake value, its shapes at two batch sizes, and who overwrites it.

    Args:
        faker: Of the base.
        graphs: Its graphs.
        inputs: Inputs at the first batch size.
        first: Graph -> a run on `inputs`, as far as there are any.

    Returns:
        Graph -> the run at the first of the two batch sizes, and mode -> the operations of that at the second.

    Raises:
        ExampleInputError: The base doesn't run on `inputs`.
        TraceError: It decides otherwise at the second batch size.
    """
    root, size, batch = faker.root, batch_size(inputs), example_batch(inputs)
    kept, operations = {}, {}
    for name, graph in graphs.items():
        runs = []
        for other in (batch, batch + 1):
            run = first.get(name) if other == batch else None
            run = run or FakeRun(
                root, bound_arguments(root, with_batch(inputs, size, other)), faker, train=name == "train"
            )
            recorder = Recorder(faker.tensors, run.inputs) if other > batch else None
            try:
                with quiet():
                    run.run(graph, recorder)
            except DecisionError as error:
                raise TraceError(str(error), where=_decider(graph, run)) from error
            except Exception as error:  # whatever the base's own code raises on these inputs
                shapes = [list(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
                raise ExampleInputError(
                    f"{type(root).__name__} ({name} graph) does not run on inputs of shapes {shapes} at batch size "
                    f"{other} (the first dimension is taken as the batch): {error}{hidden_tensors(inputs)}"
                ) from error
            runs.append(run)
            if recorder is not None:
                operations["eval" if name == "both" else name] = recorder.operations
        _annotate(graph, *runs)
        kept[name] = runs[0]
    return kept, operations


def _annotate(graph: fx.Graph, first: FakeRun, second: FakeRun) -> None:
    for node in graph.nodes:
        value, other = first.values[node], second.values[node]
        node.meta.pop("aim_overwritten_by", None)
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            node.meta["val"] = value
            node.meta[SHAPES] = (tuple(value.shape), tuple(other.shape))
        elif isinstance(value, int | float | torch.Size):
            if type(value) is int and type(other) is int:
                node.meta[NUMBERS] = (value, other)
            if value != other:
                node.meta[BY_BATCH] = True
        elif any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            node.meta["aim_has_tensors"] = True
    for writer, written in first.writes:
        written.meta.setdefault("aim_overwritten_by", []).append(writer)


def _placeholders(graph: fx.Graph) -> tuple[str, ...]:
    return tuple(str(node.target) for node in graph.find_nodes(op="placeholder"))


def _names(items: Any) -> list[str]:
    return [name for name, _ in items(remove_duplicate=False)]


def _notes(graphs: dict[str, fx.Graph]) -> tuple[str, ...]:
    if len(graphs) == 1:
        return ()
    return ("train and eval forward differ: both graphs are kept, and train() / eval() switch between them",)
