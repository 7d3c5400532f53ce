"""Does a transformed model compute what its base computes, and does every part of its memory learn?"""

from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aimgraph.api.fold import fold
from aimgraph.api.verify import BATCH_SIZES, adds_nothing, all_same, outputs, same, verify
from aimgraph.compiler.aim_paths import AIM, aim_path, is_added, is_memory, is_read_path
from aimgraph.config import Kind
from aimgraph.copies import copy_module
from aimgraph.distance import farthest, real_numbers
from aimgraph.emit.draw_memory import draw_memory
from aimgraph.emit.module import AimModule
from aimgraph.emit.record import record_of
from aimgraph.inputs.arguments import Arguments, tensors_in
from aimgraph.inputs.batch import input_shapes, random_inputs
from aimgraph.inputs.examples import resolve_inputs
from aimgraph.planning.start import scale_of, start_of
from aimgraph.reproducible import plain_attention, seeded
from aimgraph.runtime.memory import Memory
from aimgraph.torch_private import tree_leaves, tree_map_only
from aimgraph.zoo_check.bfloat16 import autocast
from aimgraph.zoo_check.lean import lean_problem

M = TypeVar("M", bound=nn.Module)

SEED = 7


TRIES = ((False, SEED), (True, SEED), (True, SEED + 1))
"""Train mode or not, and the seed of the inputs: gradients add up over these until none is missing."""


LARGER = ((0, 64, 0, 32), (0, 32, 0, 32))
"""What to pad images with, left, right, above and below, to see that a model runs at other sizes if its base does."""


FOLDED = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Largest max|d| / max|y| between a folded model and the one it was made from."""


ROUNDINGS = 10
"""How many times the model's own rounding a folded one may differ from it where that is more than `FOLDED`."""


GRADIENTS = "gradients of the memory"
"""How the message of what does not learn begins."""


def compare(base: nn.Module, aim: AimModule, inputs: Any) -> tuple[str, list[str]]:
    """Compare a model with its transform.

    Args:
        base: The untouched model.
        aim: Its transform, with all read weights or all values zero.
        inputs: Example inputs as for a transform.

    Returns:
        The first thing that is wrong, empty if nothing is; and what could not be compared.
    """
    without: list[str] = []
    return _problem_of(base, aim, inputs, without), without


def _problem_of(base: nn.Module, aim: AimModule, inputs: Any, without: list[str]) -> str:
    if not adds_nothing(aim):
        return "each memory starts with read weights or values of zero: this one has others in both"
    report = verify(base, aim, inputs)
    wrong = [check for check in report.checks if not check.ok]
    if wrong:
        return f"{wrong[0].name}: {wrong[0].detail}"
    without += [check.name for check in report.checks if not check.compared]
    arguments = resolve_inputs(base, inputs) if inputs is not None else record_of(aim).inputs
    with plain_attention():
        return (
            _other_start(base, aim, arguments)
            or _autocast(base, aim, arguments, without)
            or _resized(base, aim, arguments, without)
            or _step(aim, arguments)
            or _gradients(aim, arguments, without)
            or _lean(aim, arguments, without)
            or _folded(base, aim, arguments, without)
        )


def _autocast(base: nn.Module, aim: AimModule, inputs: Arguments, without: list[str]) -> str:
    """Bit identity of both starts under bf16 autocast, at one batch size in each mode, if the base runs under it."""
    for train, batch in zip((False, True), BATCH_SIZES, strict=True):
        mode = "train" if train else "eval"
        one, others = copy_module(base).train(train), [copy_module(aim).train(train), _restarted(aim).train(train)]
        sample = random_inputs(inputs, batch, seed=SEED)
        with autocast():
            try:
                expected = outputs(one, sample)
            except RuntimeError:  # the base's own limit: some operation of it takes no bfloat16
                without.append(f"bfloat16 autocast ({mode}): the base does not run")
                continue
            seen = [outputs(other, sample) for other in others]
        for found, start in zip(seen, ("", " from the other start"), strict=True):
            if not all_same(expected, found):
                return f"output under bfloat16 autocast ({mode}){start}: differs at batch size {batch}"
    return ""


def _other_start(base: nn.Module, aim: AimModule, inputs: Arguments) -> str:
    """Bit identity with values of zero in place of read weights of zero, or the other way round, in each mode."""
    for train, batch in zip((False, True), BATCH_SIZES, strict=True):
        sample = random_inputs(inputs, batch, seed=SEED)
        expected = outputs(copy_module(base).train(train), sample)
        if not all_same(expected, outputs(_restarted(aim).train(train), sample)):
            return f"output from the other start ({'train' if train else 'eval'}): differs at batch size {batch}"
    return ""


_OTHER: dict[str, Kind] = {"zero_reads": "zero_values", "zero_values": "zero_reads"}


def _restarted(aim: AimModule) -> AimModule:
    """A copy whose memories begin with the other factor at zero."""
    module = copy_module(aim)
    for memory in record_of(module).plan.memories:
        config = memory.config.model_copy(update={"start": _OTHER[memory.config.start], "start_scale": None})
        other = replace(memory, config=config, scale=scale_of(config, memory.reads))
        made = module.get_submodule(aim_path(memory.name))
        assert isinstance(made, Memory)
        draw_memory(module, other, made, start_of(other))
    return module


def _resized(base: nn.Module, aim: AimModule, inputs: Arguments, without: list[str]) -> str:
    """Bit identity at the first of `LARGER` sizes that the base takes; nothing to compare where it takes none."""
    given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not all(leaf.dim() >= 4 and leaf.is_floating_point() for leaf in given):  # no images
        return ""
    one, other = copy_module(base).eval(), copy_module(aim).eval()
    for padding in LARGER:
        sample = random_inputs(tree_map_only(Tensor, partial(nn.functional.pad, pad=padding), inputs), 1, seed=SEED)
        try:
            expected = outputs(one, sample)
        except Exception:  # whatever the base says about this size
            continue
        seen = outputs(other, sample)
        return "" if all_same(expected, seen) else f"output at another size (eval): differs for {input_shapes(sample)}"
    without.append("another image size: the base takes none")
    return ""


def _step(aim: AimModule, inputs: Arguments) -> str:
    """One optimiser step on everything: finite, and the memory's read weights move."""
    module = copy_module(aim).train()
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-3)
    if not _backward(module, random_inputs(inputs, 2, seed=SEED)):
        return "one optimiser step: no output requires a gradient"
    before = {name: p.detach().clone() for name, p in aim.named_parameters() if is_added(name)}
    optimiser.step()
    moved = [name for name, p in module.named_parameters() if name in before and not same(p.detach(), before[name])]
    if not moved:
        return "one optimiser step: no parameter of the memory moves"
    bad = [name for name, p in module.named_parameters() if not bool(p.isfinite().all())]
    return f"one optimiser step: {bad[0]} is not finite" if bad else ""


def _gradients(aim: AimModule, inputs: Arguments, without: list[str]) -> str:
    """In a copy without dead branches: a gradient for every read weight, and for every value that is read.

    Freshly initialised networks have units that are off, and attention that is saturated, wherever the
    memory meets them; what a part gets in any of `TRIES` counts. Train mode also has the auxiliary heads, and
    statistics of the batch that keep activations in range; eval mode drops no path.
    """
    module = _alive(aim)
    found, idle = "", set[str]()
    for train, seed in TRIES:
        if not _backward(module.train(train), random_inputs(inputs, 2, seed=seed)):
            return f"{GRADIENTS}: no output requires a gradient"
        idle = _idle(module)
        found = _without_gradient(module, inputs, idle)
        if not found and (train or not idle):  # what is idle in eval mode may be an auxiliary head
            break
    if idle:
        without.append(f"gradients at layers that the output does not depend on: {len(idle)}")
    return found


def _lean(aim: AimModule, inputs: Arguments, without: list[str]) -> str:
    """The gradients of a memory on a frozen base, with what torch keeps for them and with what they need."""
    return lean_problem(_alive(aim), lambda module: _backward(module, random_inputs(inputs, 2, seed=SEED)), without)


def _alive(aim: AimModule) -> AimModule:
    """A copy that reads, with no parameter that is zero throughout, and small terms, which saturate nothing."""
    module = copy_module(aim)
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in module.named_parameters():
        values = is_memory(name) and ".source." in name
        if values or is_read_path(name) or not bool(parameter.detach().any()):
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.02 if values else 0.05))
    return module


def _folded(base: nn.Module, aim: AimModule, inputs: Arguments, without: list[str]) -> str:
    """What `aimgraph.fold` gives, batch normalisation fused, computes what the model does.

    No closer than rounding lets the model itself be computed: by that much it differs in float32 from what it gives in
    float64, and in float64 by as many times less as numbers are finer there.
    """
    alive, expected = _alive(aim).eval(), dict[torch.dtype, list[Tensor]]()
    for dtype in FOLDED:
        try:
            outputs(_module_as(dtype, base).eval(), _as(dtype, inputs))
        except RuntimeError:  # the base's own limit: its forward is for one type
            without.append(f"folded in {_name(dtype)}: the base does not run")
            continue
        expected[dtype] = outputs(_module_as(dtype, alive), _as(dtype, inputs))
    if not all(bool(one.isfinite().all()) for found in expected.values() for one in found):
        without.append("folded: the output is not finite")
        return ""
    _, rounding = farthest(*expected.values()) if len(expected) == 2 else (0.0, 0.0)
    for dtype, those in expected.items():
        sample, what = _as(dtype, inputs), f"folded in {_name(dtype)}"
        these = outputs(fold(_module_as(dtype, alive), sample, fuse_batchnorm=True), sample)
        if [one.shape for one in these] != [one.shape for one in those]:
            return f"{what}: outputs of other shapes"
        found, bound = farthest(these, those)[1], FOLDED[dtype]
        own = ROUNDINGS * rounding * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        if not found <= max(bound, own):
            return f"{what}: max|d| / max|y| = {found:.2g} > {bound:g}"
        if found > bound and dtype is torch.float32:
            without.append(f"{what} to {bound:g}: the model's own rounding is larger")
    return ""


def _as(dtype: torch.dtype, inputs: Arguments) -> Arguments:
    """Two random samples, real and complex numbers of one precision."""
    result: Arguments = tree_map_only(Tensor, partial(_tensor_as, dtype), random_inputs(inputs, 2, seed=SEED))
    return result


def _module_as(dtype: torch.dtype, module: M) -> M:
    """A copy with numbers of one precision; `nn.Module.to` would make complex ones real."""
    return copy_module(module)._apply(partial(_tensor_as, dtype))  # type: ignore[no-untyped-call, no-any-return]


def _tensor_as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _without_gradient(module: AimModule, inputs: Arguments, idle: set[str]) -> str:
    """The first part of the memory that has no gradient and should, idle sites' apart; empty if there is none."""
    for name, parameter in module.get_submodule(AIM).named_parameters():
        problem = _problem(parameter.grad)
        if problem and not any(f".reads.{path}." in f".{name}" for path in idle):
            return f"{GRADIENTS}: that of {name} is {problem}"
    for memory in record_of(module).plan.memories:
        value = module.get_parameter(aim_path(memory.name, "source", "value"))
        assert value.grad is not None
        missed = _covered(module, memory.name, inputs, idle) & (value.grad == 0)
        if bool(missed.any()):
            count = int(missed.sum())
            return f"{GRADIENTS}: {count} of {value.numel()} values are read and get none"
    return ""


def _problem(gradient: Tensor | None) -> str:
    if gradient is None:
        return "missing"
    if not bool(gradient.isfinite().all()):
        return "not finite"
    return "" if bool(gradient.any()) else "zero"


def _idle(module: AimModule) -> set[str]:
    """Sites whose output the base's own output does not depend on: their own parameters get no gradient either."""
    found = set()
    for site in record_of(module).plan.sites:
        own = [] if site.function else list(module.get_submodule(site.path).parameters())
        if own and not any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in own):
            found.add(site.path)
    return found


def _covered(aim: AimModule, name: str, inputs: Arguments, idle: set[str]) -> Tensor:
    """Which values of a memory some read layer's kernel meets: strides and padding leave gaps.

    Args:
        aim: The transformed model.
        name: Of the memory.
        inputs: Example inputs.
        idle: Sites that don't count.
    """
    module = copy_module(aim).eval()
    reads = module.get_submodule(aim_path(name, "reads"))
    with torch.no_grad():
        for parameter in reads.parameters():
            parameter.fill_(1.0)
    terms: list[Tensor] = []
    for path, layer in reads.named_modules():
        if layer._parameters and path not in idle:
            layer.register_forward_hook(lambda _, __, term: terms.append(term.double().sum()))
    outputs(module, random_inputs(inputs, 2, seed=SEED), grad=True)
    value = module.get_parameter(aim_path(name, "source", "value"))
    (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), value)
    return gradient != 0


def _backward(module: nn.Module, sample: Arguments) -> bool:
    """Add the gradients of a number that every output has a part in, weighted at random so that no symmetry cancels.

    Returns:
        Whether there are any: they need an output that requires one.
    """
    with seeded(SEED):
        output = module(*sample[0], **sample[1])
        leaves = [leaf for leaf in tensors_in(output) if leaf.requires_grad]
        numbers = map(real_numbers, leaves)
        parts = [(one * torch.randn(one.shape)).sum() for one in numbers]
    if parts:
        torch.autograd.backward(torch.stack(parts).sum())
    return bool(parts)
