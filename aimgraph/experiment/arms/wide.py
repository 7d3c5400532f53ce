"""The arm that has the parameters of a memory in more channels.

Networks grow by whole channels, and a channel of a small network is much beside a small memory. Where the share that
`aimgraph.widen` gives to all groups misses the target, single channels are moved between the cheapest groups until the
count comes as close as these allow.
"""

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product

from torch import nn

from aimgraph.api.widen import widen, widen_plan
from aimgraph.errors import ConfigError
from aimgraph.experiment.arms.making import Making
from aimgraph.experiment.arms.memory import added_by_memory
from aimgraph.widen.choose import parameters_with
from aimgraph.widen.plan import GroupPlan, WidenPlan

TOLERANCE = 0.05
"""Which part of the parameters that a memory adds may be missing, or too much."""

UNEQUAL = 0.1
"""How unequally copies are read, so that they learn different things."""

MOVED, REACH = 4, 4
"""How many groups single channels are moved between, and how many of each at most."""


def wide(making: Making) -> nn.Module:
    """The base with more channels: as many parameters more as the memory of the options adds.

    Raises:
        ConfigError: The base is frozen.
        PlanError: Nothing can grow.
    """
    if making.recipe.frozen:
        raise ConfigError(
            "the arm 'wide' has a wider base, which is another one than a frozen base is: leave it out, or set frozen "
            "= false"
        )
    base, added = making.base, added_by_memory(making)
    size = sum(parameter.numel() for parameter in base.parameters())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*comes to .* parameters")  # what it comes to is looked at below
        made = widen(base, making.x, parameters=size + added, noise=UNEQUAL, seed=making.seed)
        if _off(_size(made) - size, added) > TOLERANCE:
            widths = _closest(widen_plan(base, making.x, parameters=size + added), base, size + added)
            other = widen(base, making.x, widths, noise=UNEQUAL, seed=making.seed) if widths else made
            made = min(made, other, key=lambda one: _off(_size(one) - size, added))
    off = _off(_size(made) - size, added)
    if off > TOLERANCE:
        making.notes.append(
            f"wide: {_size(made) - size:,} parameters more than the base's, and the memory adds {added:,}: {off:.0%} "
            "apart, and no other choice of whole channels was found that comes closer"
        )
    return made


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _off(more: int, added: int) -> float:
    """How far `more` is from `added`, as a part of it."""
    return abs(more - added) / max(1, added)


def _closest(planned: WidenPlan, base: nn.Module, target: int) -> dict[str, float | int]:
    """Layer -> channels to add, so that the parameters come closest to a target."""
    growing = [group for group in planned.groups if not group.reason]
    shapes = {name: one.shape for name, one in base.named_parameters()}
    members = [{(name, axis): count for name, axis, count in group.members} for group in growing]
    counted = partial(parameters_with, shapes, members)
    names = _names(growing)
    start = [group.added // group.step for group in growing]
    free = [place for place, group in enumerate(growing) if names[place] and not group.by_copies]
    cost = {place: counted([*start[:place], start[place] + 1, *start[place + 1 :]]) for place in free}
    moved = sorted(free, key=cost.__getitem__)[:MOVED]
    best = min(_moves(start, moved), key=lambda steps: abs(counted(steps) - target))
    return {name: steps * group.step for name, steps, group in zip(names, best, growing, strict=True) if name and steps}


def _moves(start: Sequence[int], places: Sequence[int]) -> Iterable[list[int]]:
    """Numbers of steps near some others, those that differ least first."""
    shifts = sorted(product(range(-REACH, REACH + 1), repeat=len(places)), key=lambda one: sum(map(abs, one)))
    for shift in shifts:
        steps = list(start)
        for place, more in zip(places, shift, strict=True):
            steps[place] += more
        if min(steps, default=0) >= 0:
            yield steps


def _names(groups: Sequence[GroupPlan]) -> list[str]:
    """A layer that makes the channels of each group, and of no other; empty where there is none."""
    made = [layer for group in groups for layer in group.layers]
    return [next((layer for layer in group.layers if made.count(layer) == 1), "") for group in groups]
