"""From a model and what is asked for to a widened one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import nn

from aimgraph.errors import ConfigError, PlanError, TraceError
from aimgraph.inputs.arguments import Arguments
from aimgraph.inputs.batch import batch_size, with_batch
from aimgraph.inputs.samples import samples_for
from aimgraph.user_code import told_error
from aimgraph.widen.agree import Agreement, agreement
from aimgraph.widen.analysis import Group
from aimgraph.widen.attempt import attempt
from aimgraph.widen.build import Grown, How, built, grown_tensors
from aimgraph.widen.choose import Counted, Widths, by_budget, by_widths, copies_of
from aimgraph.widen.layout import Growth
from aimgraph.widen.plan import GroupPlan, WidenPlan, group_plan
from aimgraph.widen.settle import Settled, culprits, settle
from aimgraph.widen.subject import Subject


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    Attributes:
        widths: Glob or regular expression of layers -> a factor, or how many channels to add.
        parameters: A factor (a float), or how many parameters there are to be (an int).
        how: Whether new channels are copies, or drawn and not read yet.
        noise: How unequally copies are read, relative to an equal share.
        seed: Of what is drawn.
    """

    widths: Widths | None = None
    parameters: float | int | None = None
    how: How = "copy"
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.widths is None) == (self.parameters is None):
            raise ConfigError(
                'give widths={"layer1.*": 1.5}, layers and how wide they get, or parameters=1.5, a budget for the whole'
            )
        if self.how not in get_args(How):
            raise ConfigError(f'how={self.how!r}: give "copy", or "zero" for new channels that nothing reads yet')
        if self.noise and self.how == "zero":
            raise ConfigError('noise= is of copies, which are read unequally; with how="zero" new channels are drawn')
        if not (isinstance(self.noise, int | float) and 0 <= self.noise < 1):
            raise ConfigError(f"noise={self.noise!r}: give a number from 0 to below 1, such as 0.1")
        _check_budget(self.parameters)
        if self.widths is not None and not (isinstance(self.widths, dict) and self.widths):
            raise ConfigError(f'widths={self.widths!r}: give a dict such as {{"layer1.*": 1.5, "fc1": 64}}')

    def target(self, parameters: int) -> int:
        """How many parameters there are to be of a model that has some."""
        if isinstance(self.parameters, int):
            if self.parameters < parameters:
                raise ConfigError(f"parameters={self.parameters:,}: the model has {parameters:,} already")
            return self.parameters
        return int(parameters * (self.parameters or 1.0))


def _check_budget(given: Any) -> None:
    if given is None:
        return
    if isinstance(given, bool) or not isinstance(given, int | float) or not given >= 1:
        raise ConfigError(
            f"parameters={given!r}: give a factor such as 1.5, or how many parameters the widened model is to have"
        )


@dataclass(frozen=True)
class Widening:
    """A widened model.

    Attributes:
        model: The widened one.
        plan: What was done.
        grown: Name of a parameter or buffer -> how it has grown.
    """

    model: nn.Module
    plan: WidenPlan
    grown: dict[str, Grown]


def looked_at(model: nn.Module, inputs: Arguments, asked: Asked, stay: Mapping[str, str]) -> Settled:
    """The channel groups of a model.

    Raises:
        TraceError: Its forward can't be followed.
    """
    errors: list[Exception] = []
    size = batch_size(inputs)
    two = with_batch(inputs, size, 2)
    for batch, fake, modes in (
        (two, True, (False, True)),
        (inputs, True, (False, True)),
        (two, True, (False,)),
        (two, False, (False, True)),
        (inputs, False, (False,)),
    ):
        try:
            return settle(Subject(model, batch, fake, modes, stay), copying=asked.how == "copy")
        except PlanError:
            raise
        except Exception as error:  # whatever the model's own forward raises
            errors.append(error)
    raise TraceError(
        f"{type(model).__name__} can't be followed: its forward fails on the example inputs, {told_error(errors[-1])}"
    ) from errors[-1]


def widened(model: nn.Module, inputs: Arguments, asked: Asked, stay: Mapping[str, str] | None = None) -> Widening:
    """A widened copy of a model; what it computes is checked.

    Args:
        model: It is not changed.
        inputs: Example inputs.
        asked: What was asked for.
        stay: Name of a parameter or buffer -> why channels that its layers alone make don't grow.

    Raises:
        TraceError: The model's forward can't be followed.
        PlanError: What was named can't grow.
    """
    settled = looked_at(model, inputs, asked, stay or {})
    parameters = {name: parameter.shape for name, parameter in model.named_parameters()}
    before = sum(parameter.numel() for parameter in model.parameters())
    choose = _chooser(settled, parameters, before, asked)
    sample = samples_for(model, inputs, torch.device("cpu")).at(2, 0)
    wrong = 0
    while True:
        growth, layout, groups, added = settled.lay_out(choose)
        grown = grown_tensors(growth, layout)
        build = partial(built, grown=grown, how=asked.how, noise=asked.noise, seed=asked.seed)
        agreed = agreement(model, build, sample)
        if agreed.close:
            break
        wrong += 1
        if wrong > _MOST_WRONG:
            raise PlanError(f"{type(model).__name__} can't be widened: {agreed.told()}")
        _hold_the_wrong(settled, sample, groups, added, agreed)
    made = build(model)
    after = sum(parameter.numel() for parameter in made.parameters())
    plans = _group_plans(settled, groups, added)
    return Widening(made, WidenPlan(type(model).__name__, plans, before, after, (agreed.told(),)), grown)


_MOST_WRONG = 5
"""How often groups are held because outputs change, before it is believed that they always do."""


def _chooser(
    settled: Settled, parameters: dict[str, torch.Size], before: int, asked: Asked
) -> Callable[[Sequence[Group]], Sequence[int]]:
    target = asked.target(before)
    if asked.widths is None:
        return lambda groups: by_budget(Counted(parameters, groups), target)
    widths = asked.widths
    return lambda groups: by_widths(settled.analysis, groups, widths)


def _hold_the_wrong(
    settled: Settled, sample: Arguments, groups: Sequence[Group], added: Sequence[int], agreed: Agreement
) -> None:
    """Hold the groups with which the model computes something else; no rule has told them."""
    model = settled.subject.model

    def fails(own: Sequence[Group], steps: Sequence[int]) -> bool:
        growth = Growth(settled.analysis, copies_of(settled.analysis, own, steps))
        tried = attempt(settled.subject, growth, settled.before)
        if tried.layout is None or tried.refusals:
            return True
        build = partial(built, grown=grown_tensors(growth, tried.layout))
        return not agreement(model, build, sample).close

    for group in culprits(groups, added, fails):
        settled.analysis.hold(group.steps, f"the model computes something else with more of them: {agreed.told()}")


def _group_plans(settled: Settled, groups: Sequence[Group], added: Sequence[int]) -> tuple[GroupPlan, ...]:
    steps = {tuple(group.steps.tolist()): number for group, number in zip(groups, added, strict=True)}
    return tuple(group_plan(group, steps.get(tuple(group.steps.tolist()), 0)) for group in settled.analysis.groups())
