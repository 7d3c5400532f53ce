"""What an optimiser knows of a model's parameters, for the parameters of the widened one."""

import copy
import inspect
import warnings
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn, optim

from aimgraph.errors import PlanError
from aimgraph.widen.build import Grown, How, laid, shares


class Origin:
    """Where a widened model comes from.

    Args:
        model: What was widened.
        grown: Name of a parameter or buffer -> how it has grown.
        how: Whether new channels are copies.
    """

    def __init__(self, model: nn.Module, grown: Mapping[str, Grown], how: How) -> None:
        self.parameters = [(name, ref(parameter)) for name, parameter in model.named_parameters()]
        self.grown = grown
        self.how = how

    def name_of(self, parameter: Tensor) -> str | None:
        """The name of a parameter of the model that was widened; None for any other."""
        return next((name for name, own in self.parameters if own() is parameter), None)


ORIGINS: "WeakKeyDictionary[nn.Module, Origin]" = WeakKeyDictionary()
"""Widened models of this process -> where they come from."""

POWERS = {
    **dict.fromkeys(("exp_avg", "momentum_buffer", "grad_avg", "exp_inf", "prev", "mu_product"), 1),
    **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"), 2),
}
"""What an optimiser keeps for each number of a parameter -> which power of the gradient it goes with."""


def carried(old: optim.Optimizer, new: nn.Module) -> optim.Optimizer:
    """An optimiser like `old` for the parameters of a widened model.

    Args:
        old: Of the model that was widened.
        new: What `aimgraph.widen` gave.

    Raises:
        PlanError: `new` does not come from the model that `old` is for.
    """
    origin = ORIGINS.get(new)
    if origin is None:
        raise PlanError(
            f"this {type(new).__name__} was not widened in this process, or is a copy: give what aimgraph.widen gave"
        )
    parameters = dict(new.named_parameters())
    groups, states, lost = [], dict[Tensor, dict[str, Any]](), list[str]()
    for group in old.param_groups:
        members = []
        for parameter in group["params"]:
            name = origin.name_of(parameter)
            if name is None:
                raise PlanError(
                    f"the optimiser has a parameter of shape {list(parameter.shape)} that is none of the model that "
                    "was widened: give the optimiser of that model"
                )
            members.append(parameters[name])
            state = old.state.get(parameter)
            if state:
                states[parameters[name]] = _state(state, parameter, origin, name, lost)
        groups.append({**{key: value for key, value in group.items() if key != "params"}, "params": members})
    made = _like(old, groups)
    made.state.update(states)
    if lost:
        warnings.warn(f"what the optimiser keeps for {', '.join(sorted(set(lost)))} starts anew", stacklevel=3)
    return made


def _like(old: optim.Optimizer, groups: list[dict[str, Any]]) -> optim.Optimizer:
    taken = inspect.signature(type(old)).parameters
    options = {key: value for key, value in old.defaults.items() if key in taken}
    return type(old)(groups, **options)


def _state(state: Mapping[str, Any], parameter: Tensor, origin: Origin, name: str, lost: list[str]) -> dict[str, Any]:
    """What is kept of one parameter, grown as it is."""
    grown = origin.grown.get(name)
    if grown is None:
        return copy.deepcopy(dict(state))
    found: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or (value.numel() == 1 and parameter.numel() > 1):
            found[key] = copy.deepcopy(value)
        elif value.shape == parameter.shape:
            found[key] = _grown(value, grown, origin.how, POWERS.get(key, 0))
        else:
            lost.append(f"{name} ({key}, of another shape)")
            return {}
    return found


@torch.no_grad()
def _grown(value: Tensor, grown: Grown, how: How, power: int) -> Tensor:
    """Of copies that are read by a share, the gradient is that share; of what is not read yet, nothing is known."""
    for axis, (source, number) in grown.sources.items():
        value = value.index_select(axis, source.to(value.device))
        if how == "zero":
            value = value * laid((number == 0).double(), axis, value).to(value.dtype)
        elif axis not in grown.read:
            times = torch.bincount(source)[source]
            value = value * laid(shares(times, number) ** power, axis, value).to(value.dtype)
    return value
