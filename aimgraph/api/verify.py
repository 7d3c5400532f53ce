"""Is the transformed module what it claims to be? A report, check by check."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.api.controls import disable_memory, enable_memory
from aimgraph.api.draw_apart import draw_apart
from aimgraph.api.report import Check, Report
from aimgraph.api.strip import strip
from aimgraph.compiler.aim_paths import AIM, aim_path, is_added, is_memory, is_read_path
from aimgraph.copies import copy_module
from aimgraph.distance import dense, farthest, nan_count, not_numbers, real_numbers
from aimgraph.emit.eager import eager_forward, why_not_eager
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import named_parts, with_own_forwards
from aimgraph.emit.plain_state import own_state_dict, plain_state, state_tensors
from aimgraph.emit.record import Record, record_of
from aimgraph.errors import CheckpointError, PlanError
from aimgraph.inputs.arguments import Arguments, tensors_in
from aimgraph.inputs.batch import device_of
from aimgraph.inputs.examples import resolve_inputs
from aimgraph.inputs.samples import Samples, first_that_runs
from aimgraph.reproducible import deterministic, drawn_like, is_inexact, plain_attention, seeded
from aimgraph.runtime.given import given_module
from aimgraph.runtime.memory import Memory
from aimgraph.runtime.start import is_zero
from aimgraph.tracing.graph_modules import own_class
from aimgraph.user_code import told_error

BATCH_SIZES = (2, 3)
"""Batch sizes at which outputs are compared, as a rule."""


READ_STD = 0.05
"""Of the read weights and values that stand for trained ones, where all are zero."""


def verify(base: nn.Module, aim: nn.Module, example_inputs: Any = None) -> Report:
    """Compare `aim` with the `base` it was made from, bit for bit.

    Both are copied first; neither changes, and a base that is frozen or a memory that is disabled is at work in
    the copy. With all read weights or all values zero, as at the start, the output with memory must equal the base's,
    in train and eval mode, at two batch sizes, and so must its gradients and running statistics. After training that
    holds with the memory disabled. At the second batch size the inputs have the example's own numbers, where they are
    known and the base runs on them; at the first one, too, where it runs on no others, as where floating-point inputs
    hold category codes.
    What `strip` gives is run once. With memory, the output must be what the base gives when its reads are
    added to it call by call, without the emitted graphs. What a source, read or block of your own draws at random is
    drawn apart from the base's random numbers, and said. Not-a-number counts as equal to itself. Where there is any, a
    further check says where, and fails unless it comes from the random inputs and leaves other values to compare.

    Args:
        base: The model before the transform.
        aim: The result of `aimgraph.transform`; with `within`, each transformed part is compared.
        example_inputs: As for `aimgraph.transform`; by default those of the transform.

    Raises:
        PlanError: `aim` was not transformed, not from `base`, or has no values.
        ExampleInputError: `base` does not run on random values in place of the example inputs.
    """
    given_module(base, "verify(base, aim)")
    given_module(aim, "verify(base, aim)")
    aim = with_own_forwards(aim)
    if not isinstance(aim, AimModule):
        return _verify_parts(base, aim, example_inputs)
    if any(tensor.is_meta for tensor in (*base.parameters(), *aim.parameters())):
        raise PlanError("verify compares values, and there are none on the meta device: build both on another one")
    given = record_of(aim).inputs if example_inputs is None else resolve_inputs(base, example_inputs)
    base, aim = copy_module(base), _at_work(base, aim)
    drawing = draw_apart((name, one) for name, one in aim.named_modules() if is_memory(name))
    with plain_attention():  # on both sides: the fused form rounds differently
        inputs, expected = _expected(base, given, record_of(aim))
        checks = [*_state(base, aim), _stripped(base, aim, inputs, expected[False])]
        disabled, zero = disable_memory(copy_module(aim)).aim, adds_nothing(aim)
        for train, wanted in expected.items():
            sizes = inputs.sizes[:1] if zero else inputs.sizes  # with memory, both follow below
            checks.append(_outputs("output, memory disabled", wanted, _run(disabled, inputs, train, sizes), train))
        seen = {False: _run(aim, inputs, False)}
        if zero:
            seen[True] = _run(aim, inputs, True)
            checks += [_outputs("output, with memory", expected[train], seen[train], train) for train in seen]
            with deterministic():
                checks.append(_gradients(base, aim, inputs))
        checks += [*_reads(base, aim, inputs), *_numbers(base, aim, expected, seen)]
        if drawing:
            told = f"drawn apart, so that the base draws its own: {', '.join(sorted(drawing)[:3])}"
            checks.append(Check("random numbers of the memory", True, told, compared=False))
        first = inputs.sizes[0]
        return Report(tuple(checks), farthest(seen[False].outputs[first], expected[False].outputs[first])[0])


def _expected(base: nn.Module, given: Arguments, record: Record) -> tuple[Samples, dict[bool, "_Seen"]]:
    """Inputs like those given, and what the base gives for them in eval and in train mode."""

    def run(inputs: Samples) -> dict[bool, _Seen]:
        return {train: _run(base, inputs, train) for train in (False, True)}

    return first_that_runs(base, given, run, given=record.batches, usual=BATCH_SIZES, grad=record.grad)


def _numbers(
    base: nn.Module, aim: AimModule, expected: Mapping[bool, "_Seen"], seen: Mapping[bool, "_Seen"]
) -> Iterator[Check]:
    """Where there is not-a-number, which all comparisons take for equal to itself; nothing where there is none."""
    name = "values are numbers"
    added = ((key, value) for key, value in state_tensors(aim).items() if is_added(key))
    if held := not_numbers([*base.named_parameters(), *added]):
        yield Check(name, False, f"not-a-number in {', '.join(held[:3])}")
        return
    buffers = not_numbers(base.named_buffers())
    for train, run in expected.items():
        for batch, wanted in run.outputs.items():
            counts = [nan_count(tensor) for tensor in wanted]
            ours = [nan_count(tensor) for tensor in seen[train].outputs[batch]] if train in seen else counts
            where = f"in the output at batch size {batch} ({'train' if train else 'eval'})"
            if len(ours) == len(counts) and any(mine > count for mine, count in zip(ours, counts, strict=True)):
                yield Check(name, False, f"not-a-number {where} with memory, and numbers there without")
            elif any(counts):
                whole = any(count == tensor.numel() for count, tensor in zip(counts, wanted, strict=True) if count)
                ok = not whole and not buffers
                why = f", and in {', '.join(buffers[:3])}" if buffers else ""
                total = sum(tensor.numel() for tensor in wanted)
                yield Check(name, ok, f"not-a-number at {sum(counts):,} of {total:,} places {where} of the base{why}")
            else:
                continue
            return


def _reads(base: nn.Module, aim: AimModule, inputs: Samples) -> Iterator[Check]:
    """Does what is read arrive at every call, and nowhere else? With weights drawn at random where all are zero."""
    names = {train: f"output, with reads added by hand ({'train' if train else 'eval'})" for train in (False, True)}
    if reason := why_not_eager(aim):
        yield from (Check(name, True, f"not compared: {reason}", compared=False) for name in names.values())
        return
    module, batch = _with_memory(aim) if adds_nothing(aim) else aim, inputs.sizes[0]
    for train, name in names.items():
        by_hand = eager_forward(copy_module(base).train(train), copy_module(module).train(train), train=train)
        samples = [inputs.at(batch, seed=batch, device=device_of(base)) for _ in range(2)]
        expected = outputs(by_hand, samples[0], grad=inputs.grad)
        seen = outputs(copy_module(module).train(train), samples[1], grad=inputs.grad)
        alike = all_same(expected, seen)
        detail = "bit-identical" if alike else f"differs by {farthest(seen, expected)[0]:.3g}"
        yield Check(name, alike, f"{detail} at batch size {batch}")


@torch.no_grad()
def _with_memory(aim: AimModule) -> AimModule:
    """A copy with random read weights, and with random numbers where the memory has zeros."""
    module, generator = copy_module(aim), torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if is_read_path(name) or (is_memory(name) and is_inexact(parameter) and not bool(parameter.any())):
            parameter.copy_(drawn_like(parameter, parameter.shape, generator) * READ_STD)
    return module


def _verify_parts(base: nn.Module, whole: nn.Module, example_inputs: Any) -> Report:
    if not (parts := named_parts(whole)):
        raise PlanError(f"verify needs the result of aimgraph.transform, this is a {type(whole).__name__}")
    checks: list[Check] = []
    gap = 0.0
    for path, part in parts.items():
        try:
            original = base.get_submodule(path)
        except AttributeError as error:
            raise PlanError(f"{path} is transformed, and {type(base).__name__} has no such module") from error
        report = verify(original, part, example_inputs)
        checks += [replace(check, name=f"{path}: {check.name}") for check in report.checks]
        gap = max(gap, report.max_difference)
    return Report(tuple(checks), gap)


@dataclass(frozen=True)
class _Seen:
    """What a module gives at each batch size, and its buffers afterwards."""

    outputs: dict[int, list[Tensor]]
    buffers: dict[int, dict[str, Tensor]]


def _run(module: nn.Module, inputs: Samples, train: bool, sizes: Iterable[int] = ()) -> _Seen:
    """One after the other, on a copy."""
    device, module = device_of(module), copy_module(module).train(train)
    seen = _Seen({}, {})
    for batch in sizes or inputs.sizes:
        sample = inputs.at(batch, seed=batch, device=device, own=batch == inputs.sizes[-1])
        seen.outputs[batch] = outputs(module, sample, grad=inputs.grad)
        seen.buffers[batch] = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return seen


def _state(base: nn.Module, aim: AimModule) -> Iterator[Check]:
    """Does the result take the base's checkpoints, and hold its weights?"""
    names = ("base checkpoints load", "base weights are unchanged")
    try:
        given, held = plain_state(base), plain_state(aim)
    except CheckpointError as error:
        yield from (Check(name, True, f"not compared: {error}", compared=False) for name in names)
        return
    yield _keys(names[0], base, aim, given)
    different = _differing(given, held)
    yield Check(names[1], not different, f"differ: {different[:3]}" if different else "all equal")


def _keys(name: str, base: nn.Module, aim: AimModule, given: dict[str, Any]) -> Check:
    try:
        result = copy_module(aim).load_state_dict(given, strict=False)
        plain = nn.Module.load_state_dict(copy_module(base), given, strict=False)  # without what its class makes of it
    except RuntimeError as error:  # of another shape: what one of them keeps as a buffer and the other does not
        return Check(name, False, " ".join(str(error).split()))
    new = [key for key in result.unexpected_keys if key not in plain.unexpected_keys]
    bad = [key for key in result.missing_keys if not is_added(key)] + new
    seen = f"{len(result.missing_keys)} keys under {AIM}. are new" if not bad else f"mismatched: {bad[:3]}"
    if own := own_state_dict(base):
        seen += f"; by torch's own names: load what {own} makes of them before the transform"
    return Check(name, not bad, seen)


def _stripped(base: nn.Module, aim: AimModule, inputs: Samples, expected: _Seen) -> Check:
    bare = strip(aim)
    if own_class(bare) is not own_class(base):
        return Check("strip gives the base back", False, f"a {type(bare).__name__}")
    return _outputs("strip gives the base back", expected, _run(bare, inputs, False, inputs.sizes[:1]), False)


def _outputs(name: str, expected: _Seen, seen: _Seen, train: bool) -> Check:
    """Outputs at every batch size that was seen, and all buffers afterwards."""
    label = f"{name} ({'train' if train else 'eval'})"
    if not all(expected.outputs.values()):
        return Check(label, False, "no tensor is found in the output: nothing can be compared")
    for batch, other in seen.outputs.items():
        one = expected.outputs[batch]
        if not all_same(one, other):
            return Check(label, False, f"differs at batch size {batch} by {farthest(other, one)[0]:.3g}")
        if moved := _differing(expected.buffers[batch], seen.buffers[batch]):
            return Check(label, False, f"buffers differ at batch size {batch}: {moved[:3]}")
    return Check(label, True, f"bit-identical at batch sizes {list(seen.outputs)}, buffers too")


def _gradients(base: nn.Module, aim: AimModule, inputs: Samples) -> Check:
    name = "gradients of the base"
    samples = [inputs.at(inputs.sizes[0], seed=1, device=device_of(base)) for _ in range(2)]
    plain = _backward(base, samples[0])
    if isinstance(plain, str):
        return Check(name, True, f"not compared: the base alone gives none: {plain}", compared=False)
    with_memory = _backward(aim, samples[1])
    if isinstance(with_memory, str):
        return Check(name, False, with_memory)
    widened = {f"{site.site}.weight" for site in record_of(aim).concat_sites}
    different = [key for key in _differing(plain, with_memory) if key not in widened]
    return Check(name, not different, f"differ: {different[:3]}" if different else "bit-identical")


def _backward(module: nn.Module, sample: Arguments) -> dict[str, Tensor | None] | str:
    """Name -> gradient of a copy's parameters after one pass in train mode, or why there are none."""
    module = copy_module(module).train()
    with seeded():  # the backward pass, too: a function's own may draw random numbers
        try:
            output = module(*sample[0], **sample[1])
            leaves = [leaf for leaf in tensors_in(output) if leaf.requires_grad]
            if not leaves:
                return "no output requires a gradient"
            torch.autograd.backward([real_numbers(leaf).square().mean() for leaf in leaves])
        except Exception as error:  # of a forward that runs without gradients only, or what was overwritten before
            return told_error(error).partition("\n")[0]
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def outputs(module: Callable[..., Any], sample: Arguments, *, grad: bool = False) -> list[Tensor]:
    """The tensors that a module gives, from a fixed random state, detached."""
    with torch.set_grad_enabled(grad), seeded():
        output = module(*sample[0], **sample[1])
    return [leaf.detach().clone() for leaf in tensors_in(output)]  # the next call may write what this one gave


def _at_work(base: nn.Module, aim: AimModule) -> AimModule:
    """A copy whose memory takes part, and whose base trains as `base` does: neither disabled nor frozen."""
    module = enable_memory(copy_module(aim))
    record_of(module).frozen = False
    own = dict(module.named_parameters())
    for name, parameter in base.named_parameters():
        if name in own:
            own[name].requires_grad_(parameter.requires_grad)
    return module


def adds_nothing(aim: AimModule) -> bool:
    """Whether every memory has read weights of zero or values of zero, and no read weight is part of another weight."""
    if record_of(aim).concat_sites or record_of(aim).other_passes:
        return False
    memories = {path: one for path, one in aim.named_modules() if isinstance(one, Memory)}
    for path, memory in memories.items():
        default = memories[aim_path(path.rpartition(".")[2])]  # whose reads a set may share
        weights = list(memory.reads.parameters()) or list(default.reads.parameters())
        if any(bool(weight.detach().any()) for weight in weights) and not is_zero(memory):
            return False
    return True


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, shape and dtype included; not-a-number equals itself."""
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    a, b = dense(a), dense(b)
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _differing(expected: Mapping[str, Any], seen: Mapping[str, Any]) -> list[str]:
    """Names whose tensors are not the same."""
    return [key for key, value in expected.items() if not all_same(tensors_in(value), tensors_in(seen.get(key)))]


def all_same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists hold equal tensors, bit for bit; see `same`."""
    return len(a) == len(b) and all(map(same, a, b))
