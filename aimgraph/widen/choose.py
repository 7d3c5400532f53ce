"""How many channels each group gets: what was asked for, or a share of one budget."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

from aimgraph.errors import ConfigError, PlanError
from aimgraph.planning.patterns import select_paths
from aimgraph.widen.analysis import Analysis, Group

Widths = Mapping[str, float | int]
"""Glob or regular expression of layers -> a factor (a float), or how many channels to add (an int)."""


@dataclass(frozen=True)
class Counted:
    """Counts the parameters of a model with some groups grown.

    Attributes:
        shapes: Name -> shape, of every parameter.
        groups: Those that can grow.
    """

    shapes: Mapping[str, torch.Size]
    groups: Sequence[Group]

    def parameters(self, added: Sequence[int]) -> int:
        """How many parameters there are when each group has some steps more."""
        return parameters_with(self.shapes, [group.members for group in self.groups], added)


def parameters_with(
    shapes: Mapping[str, torch.Size], members: Iterable[Mapping[tuple[str, int], int]], added: Sequence[int]
) -> int:
    """How many parameters a model has when each of some groups has some steps more.

    Args:
        shapes: Name -> shape, of every parameter.
        members: Of each group: (name, axis) of a parameter -> positions of one step there.
        added: Steps of each group.
    """
    more: dict[tuple[str, int], int] = {}
    for places, steps in zip(members, added, strict=True):
        if steps:
            for place, count in places.items():
                more[place] = more.get(place, 0) + count * steps
    return sum(
        prod(size + more.get((name, axis), 0) for axis, size in enumerate(shape)) for name, shape in shapes.items()
    )


def by_budget(counted: Counted, target: int) -> list[int]:
    """How many steps to add to each group: the same share of all, then single ones, to come close to a target.

    Groups that can only be copied as a whole take part in that share where it is 1 or more.

    Args:
        counted: The model and its groups.
        target: How many parameters it is to have, at most; one step more may be closer.
    """
    added = _largest(counted, target, lambda share: [int(share * len(group.steps)) for group in counted.groups])
    single = [_is_single(group) for group in counted.groups]

    def rest(share: float) -> list[int]:
        own = [int(share * len(group.steps)) for group in counted.groups]
        return [max(a, b) if free else a for a, b, free in zip(added, own, single, strict=True)]

    return _filled(counted, _largest(counted, target, rest), target)


def _largest(counted: Counted, target: int, added: Callable[[float], list[int]]) -> list[int]:
    """What the largest share adds that stays within a target."""
    low, high = 0.0, 1.0
    while counted.groups and counted.parameters(added(high)) <= target and high < _MOST:
        low, high = high, high * 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if counted.parameters(added(middle)) <= target else (low, middle)
    return added(low)


_MOST = 2**16


def _filled(counted: Counted, added: list[int], target: int) -> list[int]:
    """Single steps more, the costliest that fits first; at the end one that goes over, if that comes closer."""
    total = counted.parameters(added)
    costs = {place: counted.parameters(_with(added, place)) - total for place in range(len(added))}
    order = sorted(costs, key=lambda place: -costs[place])
    for place in order:
        for _ in range(_ROUNDS if _is_single(counted.groups[place]) else 1):
            more = counted.parameters(_with(added, place))
            if not total < more <= target:
                break
            added, total = _with(added, place), more
    closer = [(abs(counted.parameters(_with(added, place)) - target), place) for place in order]
    if closer and min(closer)[0] < target - total:
        added = _with(added, min(closer)[1])
    return added


_ROUNDS = 8


def _is_single(group: Group) -> bool:
    """Whether single channels of a group can grow, and not only all of them together."""
    return len(group.steps) > 1


def _with(added: list[int], place: int) -> list[int]:
    return [steps + (number == place) for number, steps in enumerate(added)]


def by_widths(analysis: Analysis, groups: Sequence[Group], widths: Widths) -> list[int]:
    """How many steps to add to each group that a pattern names; what a later pattern says counts.

    Args:
        analysis: Of the model.
        groups: Those that can grow.
        widths: What was asked for.

    Raises:
        ConfigError: A factor below 1, or a number below 0.
        PlanError: No layer is named so, or what is named can't grow.
    """
    layers = {
        layer: place for place, group in enumerate(groups) for layer in (*group.followers(analysis), *group.layers)
    }
    held = {
        layer: f"its channels stay, {group.told_reason()}"
        for group in analysis.groups()
        for layer in group.layers
        if layer not in layers
    }
    added = [0] * len(groups)
    for pattern, width in widths.items():
        _check_width(pattern, width)
        for layer in select_paths([pattern], layers, "widths", held, "can't be widened"):
            group = groups[layers[layer]]
            if pattern == layer or not _only_whole(group, width):
                added[layers[layer]] = _steps(group, layer, width)
    return added


def _check_width(pattern: str, width: object) -> None:
    if isinstance(width, bool) or not isinstance(width, int | float):
        raise ConfigError(f"widths[{pattern!r}]={width!r}: give a factor such as 1.5, or how many channels to add")
    if (isinstance(width, float) and not width >= 1) or width < 0:
        kind = "a factor is at least 1.0" if isinstance(width, float) else "channels are added, never taken away"
        raise ConfigError(f"widths[{pattern!r}]={width!r}: {kind}")


def _only_whole(group: Group, width: float | int) -> bool:
    """Whether a factor is no whole number, where a group takes no other."""
    return isinstance(width, float) and len(group.steps) == 1 and width % 1 != 0


def _steps(group: Group, layer: str, width: float | int) -> int:
    """A width in steps of a group.

    Raises:
        PlanError: The group grows by other numbers of channels only.
    """
    per_step = group.channels_in(layer)
    if _only_whole(group, width):
        why = group.by_copies or group.told_members()
        raise PlanError(f"{layer} grows by whole factors alone, {width} is none: give {ceil(width):.1f} ({why})")
    if isinstance(width, float):
        return round((width - 1) * len(group.steps))
    if width % per_step:
        near = width // per_step * per_step
        raise PlanError(
            f"{layer} gets {width} channels, and those of its group come {per_step} at a time "
            f"({group.told_members()}): add {near} or {near + per_step}"
        )
    return width // per_step


def copies_of(analysis: Analysis, groups: Sequence[Group], added: Sequence[int]) -> Tensor:
    """How many copies each channel gets when each group has some steps more, spread over its steps."""
    by_step = torch.zeros(analysis.numbering.size, dtype=torch.int64)
    for group, steps in zip(groups, added, strict=True):
        every, rest = divmod(steps, len(group.steps))
        by_step[group.steps] = every
        by_step[group.steps[:rest]] += 1
    copies = by_step[analysis.step]
    copies[0] = 0
    return copies
