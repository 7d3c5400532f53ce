"""Builds the forms of a model and measures them."""

import itertools
import math
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aimgraph.api.transform import plan
from aimgraph.bench.footprint import kept_bytes, peak_bytes
from aimgraph.bench.forms import FUSED, INFERENCE, TRAINING, build_forms
from aimgraph.bench.fresh_peak import step_peak
from aimgraph.bench.frozen import FROZEN, build_frozen, trained
from aimgraph.bench.measure import Measured, Ratio, compare, measured, ratio
from aimgraph.config import AimConfig
from aimgraph.copies import copy_module
from aimgraph.distance import real_numbers
from aimgraph.emit.record import record_of
from aimgraph.errors import ConfigError
from aimgraph.inputs.batch import batch_size, input_shapes, random_inputs
from aimgraph.inputs.examples import resolve_inputs
from aimgraph.torch_private import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
        rounds: Rounds that count.
        device: Of `torch.device`.
        autocast: Name of a dtype to compute in, e.g. ``bfloat16``.
        channels_last: Whether 4-d weights and inputs are channels-last.
        compiled: Whether every form goes through ``torch.compile``.
        training: Whether training steps are measured.
        inference: Whether inference is.
        seed: Of inputs and orders.
    """

    rounds: int = 15
    device: str = "cpu"
    autocast: str | None = None
    channels_last: bool = False
    compiled: bool = False
    training: bool = True
    inference: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Cost:
    """What one form costs.

    Attributes:
        parameters: That it trains.
        flops: Floating-point operations of a forward, multiplications and additions counted apart.
        saved: Bytes of tensors that are there after a training forward and were not before, kept for the backward pass;
            None if no training was measured.
        peak: Most bytes allocated at a time during a training step, beyond what was there before.
        seconds: ``training step``, ``forward and backward``, ``inference`` -> seconds of every round.
    """

    parameters: int
    flops: int
    saved: int | None
    peak: int | None
    seconds: dict[str, list[float]]


@dataclass(frozen=True)
class BenchReport:
    """Costs of all forms of one model.

    Attributes:
        model: Its class.
        inputs: Shapes.
        values: N of every memory.
        sites: How many layers read.
        setting: How it was measured.
        forms: Form -> cost.
    """

    model: str
    inputs: list[list[int]]
    values: list[int]
    sites: int
    setting: Setting
    forms: dict[str, Cost]

    def time(self, form: str, what: str) -> Measured:
        """Seconds of a form."""
        return measured(self.forms[form].seconds[what])

    def ratio(self, form: str, to: str, what: str) -> Ratio:
        """What a form takes over what another one takes."""
        return ratio(self.forms[form].seconds[what], self.forms[to].seconds[what])

    def to_dict(self) -> dict[str, Any]:
        """As JSON: everything that was measured, with medians and ratios."""
        data = asdict(self)
        forms = data.pop("forms")
        data["versions"] = {"torch": torch.__version__.split("+")[0], "python": platform.python_version()}
        data["threads"] = torch.get_num_threads()
        median = {
            form: {what: self.time(form, what).median for what in cost["seconds"]} for form, cost in forms.items()
        }
        ratios = {
            what: {f"{form} / {to}": asdict(self.ratio(form, to, what)) for form, to in self.pairs(what)}
            for what in WHAT
        }
        return data | {"forms": forms, "median": median, "ratios": ratios}

    def pairs(self, what: str) -> list[tuple[str, str]]:
        """The ratios that are worth looking at: to the base and to the floor, fused or not; or to full training."""
        there = [form for form, cost in self.forms.items() if what in cost.seconds]
        if "full" in there:
            return [(form, "full") for form in there[1:]] + [("lean", to) for to in ("lora", "memory") if to in there]
        found = []
        for form in there:
            fused = "fused " if form in FUSED else ""
            found += [(form, to) for to in (f"{fused}base", f"{fused}floor") if to in there and to != form]
        return found


LEAST_SECONDS = 0.05
"""A round of a form takes at least this long."""

WHAT = ("training step", "forward and backward", "inference")


def bench(
    model: nn.Module,
    example_inputs: Any = None,
    configs: Sequence[AimConfig] = (AimConfig(),),
    setting: Setting | None = None,
    *,
    forms: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> BenchReport:
    """Measure what memories cost a model: every form in this process, side by side.

    Args:
        model: Any module that can be transformed; it is not changed.
        example_inputs: As for `aimgraph.transform`; their batch is the one that is measured.
        configs: One per memory.
        setting: How to measure.
        forms: Which forms; by default all that the setting has a use for.
        progress: Told of what is measured, and how many pieces of work of how many are done.

    Raises:
        ConfigError: No such form.
        aimgraph.AimgraphError: The model can't be transformed.
    """
    setting = setting or Setting()
    device = _device(setting.device)
    model = copy_module(model).to(device)
    inputs = resolve_inputs(model, example_inputs)
    wanted = tuple(forms or (TRAINING if not setting.inference else (*INFERENCE, *FUSED)))
    frozen = set(wanted) <= set(FROZEN)
    training = FROZEN if frozen else TRAINING
    args, kwargs = random_inputs(inputs, batch_size(inputs), seed=setting.seed, device=device)
    if setting.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        args, kwargs = tree_map_only(Tensor, _channels_last, (args, kwargs))
    torch.manual_seed(setting.seed)
    progress("building the forms", 0, 1)
    modules = (build_frozen if frozen else build_forms)(model, inputs, configs, wanted)
    runs = {form: _Run(modules[form], args, kwargs, setting) for form in wanted}
    costs: dict[str, Cost] = {}
    for done, (form, run) in enumerate(runs.items()):
        progress("counting", done, len(runs))
        costs[form] = run.counted(trains=setting.training and form in training)
    for what, those, asked in (("training", training, setting.training), ("inference", wanted, setting.inference)):
        measuring = {form: run for form, run in runs.items() if form in those and asked}
        for form, found in _timed(what, measuring, setting, progress).items():
            costs[form].seconds.update(found)
    made = next((modules[form] for form in ("split", "lean", "memory") if form in modules), None)
    planned = plan(model, inputs, config=list(configs)) if made is None else record_of(made).plan
    shapes, values = input_shapes((args, kwargs)), [memory.size for memory in planned.memories]
    return BenchReport(type(model).__name__, shapes, values, planned.sites_read, setting, costs)


def peak_alone(
    model: nn.Module, example_inputs: Any, configs: Sequence[AimConfig], setting: Setting, form: str
) -> int | None:
    """The most memory that a training step of one form of `FROZEN` takes, measured in a process that does nothing else.

    Args:
        model: As for `bench`.
        example_inputs: As for `bench`.
        configs: As for `bench`.
        setting: As for `bench`.
        form: The form.

    Returns:
        Bytes, see `step_peak`.
    """
    device = _device(setting.device)
    model = model.to(device)
    inputs = resolve_inputs(model, example_inputs)
    module = build_frozen(model, inputs, configs, (form,))[form].train()
    del model
    small = random_inputs(inputs, 1, seed=setting.seed, device=device)
    _Run(module, *small, setting).step()  # what libraries make once
    run = _Run(module, *random_inputs(inputs, batch_size(inputs), seed=setting.seed, device=device), setting)
    return step_peak(run.step, device)


def _timed(
    what: str, runs: dict[str, "_Run"], setting: Setting, progress: Callable[[str, int, int], None]
) -> dict[str, dict[str, list[float]]]:
    """Form -> the seconds of every round of ``training`` or ``inference``, all forms in turn."""
    done = itertools.count(1)
    total = len(runs) * (setting.rounds + 1)
    for run in runs.values():
        run.prepare(train=what == "training")
    tasks = {form: getattr(run, what) for form, run in runs.items()}
    return compare(tasks, setting.rounds, seed=setting.seed, progress=lambda: progress(what, next(done), total))


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name!r} can't be used here: {str(error).splitlines()[0]}") from error


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


class _Run:
    """One form at work."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Any, setting: Setting) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs
        self.device, self.autocast = torch.device(setting.device), setting.autocast
        self.call = torch.compile(module) if setting.compiled else module
        self.optimizer = torch.optim.SGD(trained(module), lr=1e-6, momentum=0.9)
        self.repeats = 1

    def prepare(self, *, train: bool) -> None:
        """Set the mode, and how often a round runs: a clock is read too seldom to time a microsecond."""
        self.module.train(train)
        work = self.step if train else self.infer
        work()
        started = time.perf_counter()
        work()
        self.synchronize()
        self.repeats = math.ceil(LEAST_SECONDS / max(time.perf_counter() - started, 1e-6))

    def counted(self, *, trains: bool) -> Cost:
        """What can be counted; nothing is timed yet."""
        self.module.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.module(*self.args, **self.kwargs)
        saved = peak = None
        if trains:
            self.module.train()
            self.step()  # the optimiser's own tensors are there from now on
            saved = kept_bytes(lambda: self.forward(self.call), self.device)
            peak = peak_bytes(self.step, self.device)
        parameters = sum(parameter.numel() for parameter in trained(self.module))
        return Cost(parameters, counter.get_total_flops(), saved, peak, {})

    def forward(self, call: Any) -> Any:
        """What the form gives, under autocast if asked for."""
        dtype = getattr(torch, self.autocast or "float32")
        with torch.autocast(self.device.type, dtype) if self.autocast else nullcontext():
            return call(*self.args, **self.kwargs)

    def step(self) -> tuple[float, float]:
        """One training step; its seconds before and in the optimiser."""
        started = time.perf_counter()
        found = [leaf for leaf in tree_leaves(self.forward(self.call)) if isinstance(leaf, Tensor)]
        torch.stack([real_numbers(leaf).square().mean() for leaf in found if leaf.requires_grad]).sum().backward()
        self.synchronize()
        between = time.perf_counter()
        self.optimizer.step()
        self.synchronize()
        ended = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        return between - started, ended - between

    def infer(self) -> None:
        """One forward without gradients."""
        with torch.no_grad():
            self.forward(self.call)

    def training(self) -> dict[str, float]:
        """Seconds of a training step, and of what comes before the optimiser."""
        steps = [self.step() for _ in range(self.repeats)]
        before, after = (sum(seconds) / self.repeats for seconds in zip(*steps, strict=True))
        return {"training step": before + after, "forward and backward": before}

    def inference(self) -> dict[str, float]:
        """Seconds of a forward."""
        started = time.perf_counter()
        for _ in range(self.repeats):
            self.infer()
        self.synchronize()
        return {"inference": (time.perf_counter() - started) / self.repeats}

    def synchronize(self) -> None:
        """Wait for what the device still does."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
