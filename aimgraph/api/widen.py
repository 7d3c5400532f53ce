"""widen and widen_plan: more channels, the same function."""

from typing import Any

from torch import nn

from aimgraph.inputs.examples import resolve_inputs
from aimgraph.tracing.check_base import check_base
from aimgraph.widen.build import How
from aimgraph.widen.choose import Widths
from aimgraph.widen.plan import WidenPlan
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
    """A model with more channels that computes the same."""
    return _widening(model, example_inputs, Asked(widths, parameters, how, noise, seed)).model


def widen_plan(
    model: nn.Module,
    example_inputs: Any = None,
    widths: Widths | None = None,
    *,
    parameters: float | int | None = None,
    how: How = "copy",
) -> WidenPlan:
    """What `widen` would do with the same arguments; nothing is changed."""
    return _widening(model, example_inputs, Asked(widths, parameters, how)).plan


def _widening(model: nn.Module, example_inputs: Any, asked: Asked) -> Widening:
    check_base(model)
    return widened(model, resolve_inputs(model, example_inputs), asked)
