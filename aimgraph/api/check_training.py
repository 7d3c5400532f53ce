"""Does every part of a memory learn? Gradients over a few steps on a copy, and reasons where there is none.

The term of a site is layer_m(m; Wm). The gradient of each factor is proportional to the other one: at a start with
reads or values of zero, one of them waits until the other one has moved.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.api.training_report import TensorReport, TrainingReport
from aimgraph.compiler.aim_paths import AIM, DEFAULT, SETS, aim_path, below_aim, is_memory
from aimgraph.copies import copy_module
from aimgraph.emit.concat import refuse_concat
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import named_parts, parts_of, with_own_forwards
from aimgraph.emit.record import record_of
from aimgraph.emit.set_names import member
from aimgraph.errors import ConfigError
from aimgraph.reproducible import kept_python_randomness

LEARNING_RATE = 1e-3
"""Of the steps, by Adam: enough for a factor to be no longer zero."""


@dataclass
class _Read:
    """What was seen of a read layer.

    Attributes:
        site: The layer that reads.
        weight: Wm.
        terms: What it gave in the present step, as far as gradients come to it.
        calls: How often it was called.
        shown: Whether it was shown a value other than zero.
        reached: Whether the loss depends on what it gave.
        live: Whether a gradient other than zero came back to it.
    """

    site: str
    weight: Tensor
    terms: list[Tensor] = field(default_factory=list)
    calls: int = 0
    shown: bool = False
    reached: bool = False
    live: bool = False

    def watch(self, _module: nn.Module, given: tuple[Any, ...], term: Any) -> None:
        """A forward hook of the layer."""
        self.calls += 1
        self.shown |= bool(given[0].detach().any())
        if isinstance(term, Tensor) and term.requires_grad:
            self.terms.append(term)


@dataclass
class _Tensor:
    """A parameter of a memory.

    Attributes:
        name: In the model.
        parameter: The parameter, of the copy.
        in_use: Whether it belongs to a memory set in use.
        frozen: Why it is not trained; empty if it is.
        reads: The read layers of its memory.
        read: That of which it is the weight, if it is one.
        step: The first step with a gradient.
        gradient: Its norm at that step.
        reached: Whether the loss depends on it.
    """

    name: str
    parameter: nn.Parameter
    in_use: bool
    frozen: str
    reads: tuple[_Read, ...]
    read: _Read | None = None
    step: int | None = None
    gradient: float = 0.0
    reached: bool = False


def check_training(
    aim: nn.Module, loss: Callable[[Any], Tensor], steps: int = 3, *, base: bool = False
) -> TrainingReport:
    """Which parameters of the memories learn, which wait a step, and which never do and why.

    It takes a few steps on a copy, with the random numbers of the caller; `aim` and all random states stay as they are.

    Args:
        aim: A transformed module in split form, or a larger model with such parts.
        loss: Takes the module and gives the number to minimise, as `lambda aim: criterion(aim(x), y)`. It is called
            once for each step. What it raises goes through.
        steps: How many steps to take.
        base: Whether the base's parameters that require gradients take the steps, too, as they do where the optimiser
            has them: a new head of zeros then lets gradients through after its first step.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: Read weights are part of the base's own weights (concat form); `loss` is no function, or gives no
            number that depends on the module it is given; or `steps` is no whole number above 0.

    Example:
        >>> print(aimgraph.check_training(aim, lambda aim: aim(x).square().mean()))  # doctest: +SKIP
    """
    for part in parts_of(aim):
        refuse_concat(part, "check_training can't tell read weights from the base's weights")
    if not callable(loss) or isinstance(loss, nn.Module):
        raise ConfigError(f"check_training: loss is a {type(loss).__name__}: give a function, loss(aim) -> number")
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"check_training(steps={steps!r}): give a whole number above 0")
    with torch.inference_mode(False):
        module = copy_module(with_own_forwards(aim))
    tensors = [one for path, part in named_parts(module).items() for one in _tensors(path, part)]
    trained = [one for one in tensors if one.in_use and not one.frozen]
    if trained:
        with _kept_randomness(module), torch.inference_mode(False), torch.enable_grad():
            _train(module, loss, trained, steps, [*aim.parameters()], base=base)
    return TrainingReport(tuple(map(_report, tensors)), steps)


def _train(
    module: nn.Module,
    loss: Callable[[Any], Tensor],
    tensors: list[_Tensor],
    steps: int,
    originals: list[nn.Parameter],
    *,
    base: bool,
) -> None:
    """Take the steps, and note what gradients there are."""
    watched = {id(read): read for one in tensors for read in one.reads}.values()
    own = {id(one.parameter) for one in tensors}
    others = [p for name, p in module.named_parameters() if base and p.requires_grad and f".{AIM}." not in f".{name}"]
    parameters = [one.parameter for one in tensors] + [p for p in others if id(p) not in own]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    for step in range(1, steps + 1):
        for read in watched:
            read.terms.clear()
        value = _number(loss(module))
        terms = [(read, term) for read in watched for term in read.terms]
        outside = [p for p in originals if p.requires_grad] if step == 1 else []
        wanted = [*parameters, *(term for _, term in terms), *outside]
        found = torch.autograd.grad(value, wanted, allow_unused=True)
        ends = len(parameters), len(parameters) + len(terms)
        if any(one is not None for one in found[ends[1] :]):
            raise ConfigError(
                "check_training: loss runs the module that is checked, and it is to run the copy that it is given: "
                "write lambda aim: criterion(aim(x), y)"
            )
        _note(tensors, found, step)
        for (read, _), gradient in zip(terms, found[slice(*ends)], strict=True):
            read.reached |= gradient is not None
            read.live |= _any(gradient)
        for parameter, gradient in zip(parameters, found, strict=False):
            parameter.grad = gradient
        optimiser.step()


def _note(tensors: list[_Tensor], gradients: tuple[Tensor | None, ...], step: int) -> None:
    for one, gradient in zip(tensors, gradients, strict=False):
        one.reached |= gradient is not None
        if one.step is None and gradient is not None and _any(gradient):
            one.step, one.gradient = step, float(gradient.detach().abs().double().norm())


def _any(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())


def _number(value: Any) -> Tensor:
    """The loss, if it is one."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        told = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"check_training: loss gives {told}: it is to give a tensor of one number")
    if not value.requires_grad:
        raise ConfigError(
            "check_training: the loss requires no gradient: it does not depend on anything that is trained, or was "
            "computed under torch.no_grad()"
        )
    return value.reshape(())


def _tensors(path: str, part: AimModule) -> Iterator[_Tensor]:
    """The parameters of a part's memories, each once, watched from now on."""
    record, before = record_of(part), f"{path}." if path else ""
    chosen = record.samples or (record.chosen,)
    reads: dict[str, list[_Read]] = {}
    known: dict[str, _Read] = {}
    for memory in record.plan.memories:
        for name in dict.fromkeys(chosen):
            for read in memory.reads:
                at = member(aim_path(memory.name, "reads", read.name), part, name)
                if at not in known:
                    layer = part.get_submodule(at)
                    known[at] = _Read(before + read.site, layer.get_parameter("weight"))
                    layer.register_forward_hook(known[at].watch)
                reads.setdefault(memory.name, []).append(known[at])
    shares = any(record.sets.get(name) for name in chosen)
    for name, parameter in part.named_parameters():
        if is_memory(name):
            first, *rest = below_aim(name).split(".")
            owner, (of, kind) = (rest[0], rest[1:3]) if f"{AIM}.{first}" == SETS else (DEFAULT, (first, rest[0]))
            used = owner in chosen or (shares and owner == DEFAULT and kind in ("reads", "views"))
            mine, fixed = known.get(name.removesuffix(".weight")), _why_fixed(part, name, of, parameter)
            yield _Tensor(before + name, parameter, used, fixed, tuple(reads[of]), mine)


def _why_fixed(part: AimModule, name: str, memory: str, parameter: nn.Parameter) -> str:
    record = record_of(part)
    if not record.enabled:
        return "the memory is switched off: aimgraph.enable_memory(aim)"
    if parameter.requires_grad:
        return ""
    config = next(one.config for one in record.plan.memories if one.name == memory)
    if ".source." in name and not config.trainable:
        return "fixed: the memory was made with trainable=False"
    if name in record.shared_reads:
        return "fixed: memory sets share it" if any(record.sets.values()) else "fixed by freeze_reads"
    return "fixed: it requires no gradient"


def _report(one: _Tensor) -> TensorReport:
    shape = tuple(one.parameter.shape)
    if not one.in_use:
        return TensorReport(one.name, shape, "not in use")
    if one.step is not None:
        return TensorReport(one.name, shape, "learns" if one.step == 1 else "waits a step", one.step, one.gradient)
    return TensorReport(one.name, shape, "never", reason=one.frozen or _why_never(one))


_ABOVE = "what follows is zero or switched off, as a head of zeros or units that are off"


def _why_never(one: _Tensor) -> str:
    """Why a parameter that is trained has no gradient at any step."""
    if one.read is not None:
        return _why_read_never(one.read)
    if not any(read.calls for read in one.reads):
        return "no site that reads this memory is called"
    if not any(read.reached for read in one.reads):
        return "the loss depends on no site that reads this memory"
    live = [read for read in one.reads if read.live]
    if not live:
        return f"no gradient comes back to any site that reads it: {_ABOVE}"
    if not any(bool(read.weight.detach().any()) for read in live):
        return "all weights that read it are zero and stay so: they are fixed"
    return "nothing that a site reads depends on it" if not one.reached else "its gradient is zero"


def _why_read_never(read: _Read) -> str:
    if not read.calls:
        return f"{read.site} is not called"
    if not read.reached:
        return f"the loss does not depend on what {read.site} computes"
    if not read.live:
        return f"no gradient comes back to {read.site}: {_ABOVE}"
    return "its gradient is zero" if read.shown else "the values that it reads are zero and stay so: they are fixed"


@contextmanager
def _kept_randomness(module: nn.Module) -> Iterator[None]:
    """Put all random states back, those of the module's devices, too."""
    devices = {one.device for one in module.parameters() if one.device.type in ("cuda", "xpu")}
    with ExitStack() as stack:
        stack.enter_context(kept_python_randomness())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for device in devices:
            stack.enter_context(torch.random.fork_rng(devices=[device], device_type=device.type))
        yield
