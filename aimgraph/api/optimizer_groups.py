"""What an optimiser is given: the parameters that are trained, by what they are."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from aimgraph.compiler.aim_paths import AIM
from aimgraph.emit.concat import refuse_concat
from aimgraph.emit.parts import named_parts, parts_of
from aimgraph.errors import ConfigError

_KINDS = {"source": "values", "reads": "reads", "views": "reads", "updates": "updates"}
"""Child of a memory -> the group of its parameters."""

GROUPS = ("values", "reads", "updates", "base")


def parameter_groups(
    aim: nn.Module,
    lr: float | None = None,
    values_lr: float | None = None,
    weight_decay: float | None = None,
    values_weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """The parameters that require gradients, in groups for an optimiser: values, read weights, updates, and the base's.

    Args:
        aim: A transformed module in split form, or a larger model with such parts.
        lr: Learning rate of all groups; by default that of the optimiser.
        values_lr: That of the values, if it is another one.
        weight_decay: Of all groups but the values; by default that of the optimiser.
        values_weight_decay: Of the values. Decay pulls them to zero, where reads have nothing to show.

    Returns:
        One dict for each group that has any parameters: ``name`` (``"values"``, ``"reads"``, ``"updates"`` or
        ``"base"``), ``params``, and ``lr`` and ``weight_decay`` where they are given. Each parameter comes once. A
        module that shows the memory, or a source of several weights, counts to the reads, or the values.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: Read weights are part of the base's own weights (concat form), or a number is below 0 or no number.

    Example:
        >>> torch.optim.AdamW(aimgraph.parameter_groups(aim, lr=1e-3, values_lr=1e-2))  # doctest: +SKIP
    """
    given = {"lr": lr, "values_lr": values_lr, "weight_decay": weight_decay, "values_weight_decay": values_weight_decay}
    for name, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
        if value is not None and not number:
            raise ConfigError(f"parameter_groups({name}={value!r}): give a finite number, 0 or more")
    found: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for _, group, parameter in _trainable(aim):
        found[group].append(parameter)
    settings = {name: {"lr": lr, "weight_decay": weight_decay} for name in GROUPS}
    settings["values"] = {"lr": lr if values_lr is None else values_lr, "weight_decay": values_weight_decay}
    return [
        {"params": found[name], "name": name} | {key: one for key, one in settings[name].items() if one is not None}
        for name in GROUPS
        if found[name]
    ]


def trainable_parameters(aim: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and parameter of everything that requires gradients: of memories, and of the base where it is not frozen.

    Args:
        aim: A transformed module in split form, or a larger model with such parts.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: Read weights are part of the base's own weights (concat form).
    """
    found = list(_trainable(aim))  # what is wrong comes up at the call
    return ((name, parameter) for name, _, parameter in found)


def print_trainable_parameters(aim: nn.Module) -> None:
    """Print how many parameters require gradients, of how many there are, and how many of each group.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: Read weights are part of the base's own weights (concat form).
    """
    counts = dict.fromkeys(GROUPS, 0)
    for _, group, parameter in _trainable(aim):
        counts[group] += parameter.numel()
    trained, total = sum(counts.values()), sum(parameter.numel() for parameter in aim.parameters())
    groups = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    print(f"trainable parameters: {trained:,} of {total:,} ({trained / max(1, total):.4%}): {groups}")


def _trainable(aim: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Name, group and parameter of what requires gradients, each once."""
    for part in parts_of(aim):
        refuse_concat(part, "the parameters of the memory can't be told from the base's")
    inside = tuple(f"{path}.{AIM}." if path else f"{AIM}." for path in named_parts(aim))
    for name, parameter in aim.named_parameters():
        if parameter.requires_grad:
            prefix = next((one for one in inside if name.startswith(one)), None)
            yield name, "base" if prefix is None else _group(name.removeprefix(prefix)), parameter


def _group(path: str) -> str:
    """The group of a parameter at ``<memory>.<kind>...`` or ``sets.<set>.<memory>.<kind>...`` below ``aim``."""
    kind = path.split(".")[3 if path.startswith("sets.") else 1]
    return _KINDS[kind]
