"""widen, widen_plan and widen_optimizer: more channels, the same function."""

import warnings
from typing import Any

from torch import nn, optim

from aimgraph.api.refit import check_can_refit, refit_widened
from aimgraph.compiler.aim_paths import AIM, SETS, is_added
from aimgraph.copies import copy_module
from aimgraph.emit.interpreted import interpreted
from aimgraph.emit.module import AimModule
from aimgraph.emit.record import record_of
from aimgraph.errors import PlanError
from aimgraph.inputs.arguments import Arguments
from aimgraph.inputs.batch import batch_size, device_of, random_inputs
from aimgraph.inputs.examples import resolve_inputs
from aimgraph.tracing.check_base import check_base
from aimgraph.widen.build import Grown, How, built
from aimgraph.widen.choose import Widths
from aimgraph.widen.optimizer import ORIGINS, Origin, carried
from aimgraph.widen.plan import WidenPlan
from aimgraph.widen.subject import tensors_of
from aimgraph.widen.widening import Asked, Widening, widened


def widen(
    model: nn.Module,
    example_inputs: Any = None,
    widths: Widths | None = None,
    *,
    parameters: float | int | None = None,
    how: How = "copy",
    noise: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """A model of the same class with more channels, which computes what `model` computes.

    All that is tied to a channel grows with it: what reads it, norms, depthwise convolutions, what is added to it or
    multiplied with it, and so on (`widen_plan` lists it). What would have to be another function stays as it is.
    The outputs of the result are compared with those of `model`.

    Args:
        model: It is not changed.
        example_inputs: As for `aimgraph.transform`.
        widths: Glob of layers, or a regular expression after ``re:`` -> how wide what they give becomes: a factor (a
            float), or how many channels to add (an int). A later pattern counts where several name a layer.
        parameters: A budget for the whole model in place of `widths`: a factor (a float), or how many parameters it is
            to have (an int). All groups that can grow get the same share; the result comes as close as single channels
            allow.
        how: ``"copy"``: new channels are copies, and what reads them is shared out among them. ``"zero"``: they are
            drawn at the scale of their layer's weights, and what reads them is zero: features that do nothing yet.
        noise: Of copies: how unequally they are read, relative to their share; the sum stays. Copies that are read
            equally have equal gradients and learn the same.
        seed: Of what is drawn.

    Returns:
        The widened model, in the mode of `model`, on its device and of its dtype, with every parameter as trainable as
        it was there.

    Raises:
        ConfigError: An option is invalid.
        ExampleInputError: The inputs don't fit the model or can't be inferred.
        TraceError: The model's forward can't be followed.
        PlanError: No layer is named as asked, or it can't be widened.

    Example:
        >>> wide = aimgraph.widen(torchvision.models.resnet50(), parameters=1.5)  # doctest: +SKIP
    """
    asked = Asked(widths, parameters, how, noise, seed)
    found = _widening(model, example_inputs, asked)
    _tell_of_less(found.plan, asked)
    grown, made = found.grown, found.model
    if isinstance(model, AimModule):
        grown = _in_every_set(model, grown)
        made = refit_widened(built(model, grown, how, noise, seed)) if grown else copy_module(model)
    ORIGINS[made] = Origin(model, grown, how)
    return made


def widen_plan(
    model: nn.Module,
    example_inputs: Any = None,
    widths: Widths | None = None,
    *,
    parameters: float | int | None = None,
    how: How = "copy",
) -> WidenPlan:
    """What `widen` would do with the same arguments; nothing is changed.

    Returns:
        The plan; it prints as a table of channel groups, of all that grows with each, and of what stays and why.

    Raises:
        ConfigError: An option is invalid.
        ExampleInputError: The inputs don't fit the model or can't be inferred.
        TraceError: The model's forward can't be followed.
        PlanError: No layer is named as asked, or it can't be widened.
    """
    return _widening(model, example_inputs, Asked(widths, parameters, how)).plan


def widen_optimizer(old: optim.Optimizer, new: nn.Module) -> optim.Optimizer:
    """An optimiser like `old` for a widened model: groups, options, and what it knows of each parameter are carried on.

    Moments grow as the parameters do. Where a channel is read by a share, its gradient is that share, so first moments
    are shared out and second ones by its square; new channels of ``how="zero"`` start without.

    Args:
        old: The optimiser of the model that was widened; it is not changed.
        new: What `widen` gave for that model.

    Returns:
        An optimiser of the same class.

    Raises:
        PlanError: `new` was not widened in this process, or from another model than the one that `old` is for.
    """
    if not isinstance(old, optim.Optimizer):
        raise PlanError(f"a torch.optim.Optimizer is needed, this is a {type(old).__name__}")
    return carried(old, new)


def resolved(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, Arguments]:
    """A model that can be copied, and inputs of it.

    Raises:
        PlanError: It is wrapped, compiled, scripted or quantised.
        ExampleInputError: The inputs don't fit the model or can't be inferred.
    """
    check_base(model)
    return model, resolve_inputs(model, example_inputs)


def _tell_of_less(plan: WidenPlan, asked: Asked) -> None:
    """Say so where a budget is not reached.

    Raises:
        PlanError: Nothing can grow.
    """
    target = asked.target(plan.parameters)
    stay = dict.fromkeys(f"{group.layers[0]}: {group.reason or group.by_copies}" for group in plan.groups)
    why = f"; what stays, the first of {len(stay)}: {'; '.join(list(stay)[:4])}"
    if target > plan.parameters == plan.widened:
        raise PlanError(f"no channel group of {plan.model} can grow{why}; aimgraph.widen_plan lists all")
    if abs(plan.widened - target) > (target - plan.parameters) * _SHORT and asked.widths is None:
        warnings.warn(
            f"{plan.model} comes to {plan.widened:,} parameters ({plan.factor:.2f} x), not to {target:,}: single "
            "channels of its groups are larger than that, or too few can grow; see aimgraph.widen_plan",
            stacklevel=3,
        )


_SHORT = 0.05
"""Which part of what was asked for may be missing, or too much."""

STAYS = "the memory's own sizes stay"


def _widening(model: nn.Module, example_inputs: Any, asked: Asked) -> Widening:
    if isinstance(model, AimModule):
        check_can_refit(model, "widen")
        inputs = record_of(model).inputs if example_inputs is None else resolve_inputs(model, example_inputs)
        inputs = random_inputs(inputs, batch_size(inputs), 0, device_of(model), own=True)
        return widened(interpreted(model), inputs, asked, dict.fromkeys(filter(is_added, tensors_of(model)), STAYS))
    return widened(*resolved(model, example_inputs), asked)


def _in_every_set(aim: AimModule, grown: dict[str, Grown]) -> dict[str, Grown]:
    """How tensors grow, with those of other memory sets, which grow as those of the default set."""
    names = tensors_of(aim)
    return grown | {
        f"{SETS}.{name}.{key.removeprefix(f'{AIM}.')}": how
        for name in record_of(aim).sets
        for key, how in grown.items()
        if f"{SETS}.{name}.{key.removeprefix(f'{AIM}.')}" in names
    }
