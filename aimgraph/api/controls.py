"""What one does with a transformed module: undo it, freeze its base, switch its memory off."""

from collections.abc import Iterator
from itertools import chain
from typing import TypeVar

from torch import nn

from aimgraph.compiler.aim_paths import AIM
from aimgraph.emit.concat import refuse_concat
from aimgraph.emit.fixed_reads import fix_reads, refuse_zero_reads
from aimgraph.emit.frozen import Stopped
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import named_parts, parts_of
from aimgraph.emit.record import record_of
from aimgraph.emit.sets import own_parameters
from aimgraph.reproducible import is_inexact
from aimgraph.runtime.finite import Writer

M = TypeVar("M", bound=nn.Module)


def memory_parameters(aim: nn.Module, memory_set: str | None = None) -> Iterator[nn.Parameter]:
    """The parameters of every memory: sources, read weights and updates, for an optimiser.

    Those that require no gradient are among them, as the values of a source with ``trainable=False``; optimisers leave
    such parameters as they are. `aimgraph.trainable_parameters` leaves them out.

    Args:
        aim: A transformed module in split form, or a larger model with such parts.
        memory_set: Those of one memory set only: its own, not what it shares; by default those of all.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: Read weights are part of the base's own weights (concat form), or there is no such set.
    """
    parts = parts_of(aim)
    for part in parts:
        refuse_concat(part, "memory_parameters can't tell read weights from the base's weights")
    if memory_set is None:
        return chain.from_iterable(part.get_submodule(AIM).parameters() for part in parts)
    return chain.from_iterable([own_parameters(part, memory_set) for part in parts])


def freeze_base(aim: M, frozen: bool = True, *, lean: bool = True) -> M:
    """Stop the base's gradients and keep it in eval mode through later ``train()`` calls.

    Its batch-norm statistics and dropout stand still; what lives under ``aim`` goes on training.
    Of a larger model with transformed parts, all gradients but the memories' stop; the mode is kept
    inside the parts only.

    Args:
        aim: A transformed module in split form, or a larger model with such parts; changed in place.
        frozen: False lets the base train again (every base parameter then requires a gradient). `strip` gives back a
            base whose parameters require gradients as before.
        lean: Keep for the backward pass only what the gradients that are still wanted need (see docs/lean.md); outputs
            and gradients are the same. False keeps what torch keeps.

    Returns:
        `aim`.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: Read weights are part of the base's own weights (concat form).
    """
    for part in parts_of(aim):
        refuse_concat(part, "freeze_base can't freeze a part of a weight")
    parts = named_parts(aim)
    added = {id(p) for part in parts.values() for p in part.get_submodule(AIM).parameters()}
    own = {name: p for name, p in aim.named_parameters() if id(p) not in added}
    before = {name for name, parameter in own.items() if parameter.requires_grad}
    before.update(*(record_of(part).stopped.seen_from(path) for path, part in parts.items()))
    for parameter in own.values():
        if is_inexact(parameter):  # others have no gradients
            parameter.requires_grad_(not frozen)
    for path, part in parts.items():
        record_of(part).frozen, record_of(part).lean = frozen, lean
        record_of(part).stopped = Stopped(path, frozenset(before)) if frozen else Stopped()
    return aim.train(aim.training)


def freeze_reads(aim: M, frozen: bool = True) -> M:
    """Stop the gradients of the read weights, so that of a memory without updates its values alone are trained.

    The read weights are those of the default memory set, which sets added with ``share_reads=True`` read with as well.
    A set with read weights of its own goes on training them.

    Args:
        aim: A transformed module in split form, or a larger model with such parts; changed in place.
        frozen: False lets those read weights train again that did before, once no memory set shares them.

    Returns:
        `aim`.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: Read weights are part of the base's own weights (concat form), or all read weights of a memory are
            zero, so that its values could not learn.

    Example:
        >>> aim = aimgraph.transform(model, x, start="zero_values")  # doctest: +SKIP
        >>> aimgraph.freeze_reads(aimgraph.freeze_base(aim))  # a task is N values  # doctest: +SKIP
    """
    parts = parts_of(aim)
    for part in parts:
        refuse_concat(part, "freeze_reads can't freeze a part of a weight")
        if frozen:
            refuse_zero_reads(part, "freeze_reads")
    for part in parts:
        fix_reads(part, frozen)
    return aim


def skipped_writes(aim: nn.Module) -> dict[str, int]:
    """How many batches wrote nothing, because they were not finite.

    A batch that overflows half precision leaves no infinity behind: the carried state of a memory and the running
    statistics of its updates stay as they were. A warning says so once for each memory.

    Args:
        aim: A transformed module, or a larger model with transformed parts.

    Returns:
        Path of an update or a carried state -> batches that it skipped since it was made or loaded; those that
        skipped any.

    Raises:
        PlanError: `aim` was not transformed.
    """
    parts_of(aim)
    counts = {path: int(module.skipped) for path, module in aim.named_modules() if isinstance(module, Writer)}
    return {path: count for path, count in counts.items() if count}


class disable_memory:  # noqa: N801  (reads as a verb, and works as a context manager)
    """Let `aim` compute what its base computes, at once and until `enable_memory`.

    Also a context manager, which restores what was before:

        >>> with aimgraph.disable_memory(aim):  # doctest: +SKIP
        ...     plain = aim(x)

    Args:
        aim: A transformed module, or a larger model with transformed parts; changed in place.

    Raises:
        PlanError: `aim` was not transformed.
    """

    def __init__(self, aim: nn.Module) -> None:
        self.aim = aim
        self.before = [(part, record_of(part).enabled) for part in parts_of(aim)]
        for part, _ in self.before:
            _enable(part, False)

    def __enter__(self) -> nn.Module:
        return self.aim

    def __exit__(self, *error: object) -> None:
        for part, enabled in self.before:
            _enable(part, enabled)


def enable_memory(aim: M) -> M:
    """Let the memory take part again after `disable_memory`.

    Raises:
        PlanError: `aim` was not transformed.
    """
    for part in parts_of(aim):
        _enable(part, True)
    return aim


def _enable(aim: AimModule, enabled: bool) -> None:
    record_of(aim).enabled = enabled
    aim._select()
