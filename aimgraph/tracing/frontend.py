"""From a base to a program: copy, trace, and derive the shapes of every node at two batch sizes."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from torch import fx, nn

from aimgraph.compiler.graph_data import plain_copy
from aimgraph.compiler.program import Program
from aimgraph.compiler.signature import Classified, Opaque, Signature, base_names, graph_inputs
from aimgraph.config import AimConfig
from aimgraph.copies import copy_module
from aimgraph.errors import ExampleInputError, PlanError, TraceError
from aimgraph.fake.faker import Faker
from aimgraph.fake.leftovers import Outside
from aimgraph.fake.run import FakeRun
from aimgraph.inputs.arguments import Arguments, bound_arguments
from aimgraph.inputs.batch import Batches, batch_size, input_shapes, usual_batches, with_batch
from aimgraph.planning.plan import Plan
from aimgraph.runtime.call_names import OPAQUE_BASE
from aimgraph.tracing.affine import classify_layers, with_other_weights
from aimgraph.tracing.check_base import check_base
from aimgraph.tracing.check_graph import check_faithful
from aimgraph.tracing.check_repeats import check_repeats
from aimgraph.tracing.gradients import without_gradient
from aimgraph.tracing.observe import MODES, Observed, line_of, observe
from aimgraph.tracing.opaque import (
    draws_nothing,
    keep_as_call,
    keep_larger,
    kept_notes,
    other_batches,
    wants_values,
)
from aimgraph.tracing.recomputed import written_again
from aimgraph.tracing.refusal import refusal_of
from aimgraph.tracing.shapes import canonical_inputs, check_one_sample
from aimgraph.tracing.side_effects import kept_generators
from aimgraph.tracing.trace import Traced, trace


def build_program(
    base: nn.Module,
    inputs: Arguments,
    configs: tuple[AimConfig, ...],
    *,
    share: bool,
    outside: Outside | None = None,
    batches: tuple[int, int] | None = None,
    enter: Collection[str] = (),
    stay: Collection[str] = (),
) -> Program:
    """Copy and trace `base`.

    Args:
        base: The model; it is not changed.
        inputs: Example positional and keyword inputs.
        configs: One per memory, with distinct names.
        share: Whether the copy shares the base's parameters and buffers.
        outside: What is known of the base's classes already.
        batches: The two batch sizes to look at the base at; by default the example's and the next one, or, where the
            base does not run at that, twice or half as many samples.
        enter: Paths of modules whose forward is traced, though there is no layer in it, or it is one.
        stay: Paths of modules that are kept as one call, though they could be traced.

    Raises:
        PlanError: The base is of a kind that can't be transformed, or uses a reserved name.
        TraceError: The base can't be traced.
        ExampleInputError: The base doesn't run on `inputs`.
    """
    check_base(base)
    root = clone(base, share=share)
    kinds = _layers_but(root, enter)
    batch_size(inputs)  # says so where there is none
    bound_arguments(root, inputs)  # the same, where they don't fit the forward
    shapes = tuple(map(tuple, input_shapes(inputs)))
    given = None if batches is None else Batches(*batches)
    outside = Outside(root) if outside is None else outside
    found = kept_generators(root)(_trace_around)(root, kinds, inputs, outside.of_copy(root), given, enter, stay)
    traced, observed, inputs = found.traced, found.observed, found.inputs
    graphs = traced.graphs
    signature = Signature(
        model=type(base).__name__,
        placeholders={name: graph_inputs(graph) for name, graph in graphs.items()},
        parameters=base_names(root),
        inputs=shapes,
        batch=found.batches.first,
        second=found.batches.second,
        grad=found.grad,
        moded=traced.moded,
        example=inputs,
        calls={mode: seen.calls for mode, seen in observed.items()},
        again={mode: seen.calls for mode, seen in found.again.items()},
        opaque={path or OPAQUE_BASE: item for path, item in found.opaque.items()},
        untrained=found.untrained,
    )
    parameters = sum(parameter.numel() for parameter in root.parameters())
    notes = (*traced.notes, *(_BOTH if len(graphs) > 1 else ()), *kept_notes(root, found.opaque), *outside.notes())
    plan = Plan(signature.model, signature.inputs, parameters, layers=0, notes=notes)
    return Program(root, graphs, kinds, found.runs, signature, configs, plan, traced=_copied(graphs))


def _layers_but(root: nn.Module, enter: Collection[str]) -> dict[nn.Module, Classified]:
    asked = [root.get_submodule(path) for path in enter]
    return {layer: kind for layer, kind in classify_layers(root).items() if layer not in asked}


def _copied(graphs: dict[str, fx.Graph]) -> dict[str, fx.Graph]:
    return {name: plain_copy(graph) for name, graph in graphs.items()}


STAYS = "it is kept as it is"
"""Why a module is one call that need not be."""

_BOTH = ("train and eval forward differ: both graphs are kept, and train() / eval() switch between them",)


@dataclass(frozen=True)
class _Found:
    """A base that is traced as far as it can be.

    Attributes:
        traced: Its graphs.
        observed: What the base does on the sample.
        opaque: What is kept as one call.
        inputs: The inputs at the first of the batch sizes that shapes are derived at.
        runs: Graph -> what its nodes give there.
        batches: These.
        grad: Whether its forward differentiates, and runs with gradients recorded only.
        again: What the base does at the second one, in the modes that matter.
        untrained: Names of the calls that get no gradient.
    """

    traced: Traced
    observed: dict[str, Observed]
    opaque: dict[str, Opaque]
    inputs: Arguments
    runs: dict[str, FakeRun]
    batches: Batches
    grad: bool
    again: dict[str, Observed]
    untrained: frozenset[str]


def _trace_around(
    root: nn.Module,
    kinds: dict[nn.Module, Classified],
    inputs: Arguments,
    outside: Outside,
    given: Batches | None,
    enter: Collection[str],
    stay: Collection[str],
) -> _Found:
    """Trace `root`; a module that can't be traced becomes one call, the innermost one first.

    Args:
        root: The base.
        kinds: How each of its convolutions and linear layers can read.
        inputs: The example inputs.
        outside: Of the base.
        given: The two batch sizes to look at it at, if that is said.
        enter: Paths of modules that are entered in any case.
        stay: Paths of modules that are kept as one call in any case.

    Raises:
        ExampleInputError: It does not run at a second batch size.
        TraceError: Not even the base as one call can be traced.
    """
    opaque = {path: Opaque(path, STAYS, needs_values=False) for path in stay}
    batches, settled, grad = given or usual_batches(inputs), given is not None, False
    while True:
        sample = with_batch(inputs, batch_size(inputs), batches.first)
        real = frozenset(path for path, item in opaque.items() if item.needs_values)
        faker, observed, failed = _observed(Faker(root, real, outside, grad=grad), kinds, sample, _places(opaque))
        grad = faker.grad
        if failed is not None:
            if not keep_as_call(root, opaque, failed.calls.failed or "", failed.error, needs_values=True):
                raise refusal_of(root, inputs, sample, failed.error)
            continue
        if again := written_again(chain.from_iterable(seen.recomputed for seen in observed.values())):
            keep_as_call(root, opaque, *again, needs_values=False)
            continue
        if sliced := with_other_weights(root, kinds, (seen.calls for seen in observed.values())):
            kinds |= sliced
            continue
        try:
            traced = _traced(faker, kinds, sample, opaque, observed, enter)
        except TraceError as error:
            if not keep_as_call(root, opaque, error.where or "", error, needs_values=False):
                raise
            continue
        try:
            return _checked(faker, kinds, sample, inputs, batches, opaque, observed, traced)
        except (TraceError, ExampleInputError) as error:
            other = None if settled else other_batches(faker, kinds, inputs, batches)
            batches, settled = other or batches, True
            if other is None and not _kept(faker, kinds, inputs, batches, opaque, error):
                raise


def _observed(
    faker: Faker, kinds: dict[nn.Module, Classified], sample: Arguments, places: frozenset[str]
) -> tuple[Faker, dict[str, Observed], Observed | None]:
    """What the base does on the sample, and where it failed; with gradients recorded if it gets no further without."""
    observed = observe(faker, kinds, sample, opaque_paths=places, twice=True)
    failed = next((seen for seen in observed.values() if seen.error is not None), None)
    if failed is None or faker.grad or wants_values(failed.error):
        return faker, observed, failed
    other = Faker(faker.root, faker.real, faker.outside, grad=True)
    again = observe(other, kinds, sample, opaque_paths=places, twice=True)
    further = next((seen for seen in again.values() if seen.error is not None), None)
    return (other, again, further) if further is None or wants_values(further.error) else (faker, observed, failed)


def _traced(
    faker: Faker,
    kinds: dict[nn.Module, Classified],
    sample: Arguments,
    opaque: dict[str, Opaque],
    observed: dict[str, Observed],
    enter: Collection[str],
) -> Traced:
    callers = {path for seen in observed.values() for path in seen.calls.callers}.union(enter)
    entered = frozenset(map(faker.root.get_submodule, callers))
    return trace(faker, kinds, sample, entered, _places(opaque), observed["train"].operations)


def _kept(
    faker: Faker,
    kinds: dict[nn.Module, Classified],
    inputs: Arguments,
    batches: Batches,
    opaque: dict[str, Opaque],
    error: TraceError | ExampleInputError,
) -> bool:
    """Whether something more can be one call where a graph is not what the forward is."""
    if isinstance(error, TraceError):
        return keep_as_call(faker.root, opaque, error.where or "", error, needs_values=False)
    larger_ones = with_batch(inputs, batch_size(inputs), batches.second)
    return keep_larger(faker.root, opaque, observe(faker, kinds, larger_ones), error)


def _places(opaque: dict[str, Opaque]) -> frozenset[str]:
    """Paths of what is kept as one call, as they stand in a graph."""
    return frozenset(path or OPAQUE_BASE for path in opaque)


def _checked(
    faker: Faker,
    kinds: dict[nn.Module, Classified],
    sample: Arguments,
    inputs: Arguments,
    batches: Batches,
    opaque: dict[str, Opaque],
    observed: dict[str, Observed],
    traced: Traced,
) -> _Found:
    """What was traced, once its graphs do what the base does, on the sample and at a second batch size.

    Args:
        faker: Of the base.
        kinds: The kind of each of its convolutions and linear layers.
        sample: The inputs that it was traced with.
        inputs: The example inputs.
        batches: The two batch sizes.
        opaque: What is kept as one call.
        observed: What the base does on the sample.
        traced: Its graphs.

    Raises:
        ExampleInputError: It does not run at a second batch size.
        TraceError: A graph does something else.
    """
    root, places = faker.root, _places(opaque)
    sources = draws_nothing(traced.runs) and OPAQUE_BASE not in places
    line = partial(line_of, faker, kinds, places)
    check_faithful(root, traced.operations, observed, batch_size(sample), partial(line, sample), sources=sources)
    canonical, batches, runs, operations = canonical_inputs(faker, traced, sample, inputs, batches)
    larger = with_batch(canonical, batch_size(canonical), batches.second)
    again = observe(faker, kinds, larger, MODES if opaque else operations, places)
    sources = sources and draws_nothing(runs)
    check_faithful(root, operations, again, batches.second, partial(line, larger), sources=sources)
    check_one_sample(faker, traced, canonical)
    check_repeats(faker, kinds, traced, observed, (canonical, larger))
    untrained = without_gradient(faker, kinds, canonical, places, traced, observed)
    return _Found(traced, observed, opaque, canonical, runs, batches, faker.grad, again, untrained)


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
