"""Modules that can't be traced and are kept as one call, the innermost one first."""

from torch import nn

from aimgraph.compiler.signature import Classified, Opaque
from aimgraph.errors import ExampleInputError, TraceError
from aimgraph.fake.faker import Faker
from aimgraph.fake.run import FakeRun
from aimgraph.inputs.arguments import Arguments
from aimgraph.inputs.batch import Batches, batch_size, with_batch
from aimgraph.runtime.call_names import OPAQUE_BASE
from aimgraph.runtime.layer_kinds import is_layer
from aimgraph.runtime.memory import put_module
from aimgraph.runtime.opaque import OpaqueBase
from aimgraph.torch_private import DataDependentOutputException, DynamicOutputShapeException
from aimgraph.tracing.observe import Observed, observe
from aimgraph.user_code import place_of


def draws_nothing(runs: dict[str, FakeRun]) -> bool:
    """Whether no module that is one call draws from Python's random numbers, which may choose between tensors."""
    return not any(run.draws for run in runs.values())


def wants_values(error: BaseException | None) -> bool:
    """Whether a forward has failed on fake tensors because it depends on the value of one."""
    return isinstance(error, DataDependentOutputException | DynamicOutputShapeException)


def keep_larger(
    root: nn.Module, opaque: dict[str, Opaque], larger: dict[str, Observed], error: ExampleInputError
) -> bool:
    """Note what has to be one call where a graph fails on one sample more; whether there is anything.

    The whole base if it takes one sample more itself, and what depends on values only then.
    """
    failed = next((seen for seen in larger.values() if seen.error is not None), None)
    if failed is None:
        return keep_as_call(root, opaque, "", error, needs_values=False)
    if wants_values(failed.error):
        return keep_as_call(root, opaque, failed.calls.failed or "", failed.error, needs_values=True)
    return False


def other_batches(
    faker: Faker, kinds: dict[nn.Module, Classified], inputs: Arguments, batches: Batches
) -> Batches | None:
    """Two batch sizes that the base itself takes, if it does not take the second of `batches`; None if it does.

    Some take those only that divide a number, or that a number divides: twice as many samples are tried, and half.
    """

    def runs(batch: int) -> bool:
        seen = observe(faker, kinds, with_batch(inputs, batch_size(inputs), batch)).values()
        return all(one.error is None or wants_values(one.error) for one in seen)

    first = batches.first
    if runs(batches.second):
        return None
    if runs(2 * first):
        return Batches(first, 2 * first)
    # one sample is no half: it fits beside whatever stays as it is
    return Batches(first // 2, first) if first > 3 and runs(first // 2) else None


def keep_as_call(
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
    reason = known.reason if known is not None else reason_of(error)
    opaque[path] = Opaque(path, reason, needs_values)
    if not path:
        put_module(root, OPAQUE_BASE, OpaqueBase(root, needs_values=needs_values, reason=reason))
    return True


def reason_of(error: Exception | None) -> str:
    """Why a module can't be traced, in one line with the place in its code."""
    cause = error.__cause__ if isinstance(error, TraceError) and error.__cause__ is not None else error
    assert cause is not None
    what = str(cause).strip().partition("\n")[0] or type(cause).__name__
    if wants_values(cause):
        what = f"what it does depends on the value of a tensor ({what})"
    return f"{what}{place_of(cause)}"


def kept_notes(root: nn.Module, opaque: dict[str, Opaque]) -> list[str]:
    """What a plan says of the modules that are kept as one call and hold layers."""
    return [
        f"{path or 'the model'} ({type(root.get_submodule(path)).__name__}) can't be traced and is kept as one call, "
        f"inside which its layers read: {item.reason}"
        for path, item in opaque.items()
        if any(map(is_layer, root.get_submodule(path).modules()))
    ]
