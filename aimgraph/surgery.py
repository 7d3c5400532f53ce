"""What one does with a transformed module: undo it, freeze its base, switch its memory off."""

import copy
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from torch import nn

from aimgraph.errors import ConfigError, PlanError
from aimgraph.module import AimModule, base_parts, narrow, rebind_hooks
from aimgraph.program import AIM
from aimgraph.runtime.layers import AffineLayer


def strip(aim: nn.Module) -> nn.Module:
    """The base back: an instance of its class with the present base weights and buffers.

    Args:
        aim: A transformed module; it is not changed, and shares nothing with the result.

    Raises:
        PlanError: `aim` was not transformed.
    """
    module = _transformed(aim)
    record = module._record
    base = record.base_class.__new__(record.base_class)
    base.__dict__.update(base_parts(module))
    base = copy.deepcopy(base)
    rebind_hooks(base)
    for site in record.widened:
        layer = base.get_submodule(site.site)
        assert isinstance(layer, AffineLayer)
        narrow(layer, site)
    return base


def memory_parameters(aim: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of every memory: sources, read weights and updates, for an optimiser.

    Args:
        aim: A transformed module in split form.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: Read weights are part of widened weights (concat form).
    """
    module = _transformed(aim)
    _refuse_widened(module, "memory_parameters can't tell read weights from the base's weights")
    return module.get_submodule(AIM).parameters()


def freeze_base(aim: nn.Module, frozen: bool = True) -> AimModule:
    """Stop the base's gradients and keep it in eval mode through later ``train()`` calls.

    Its batch-norm statistics and dropout stand still; what lives under ``aim`` goes on training.

    Args:
        aim: A transformed module in split form; changed in place.
        frozen: False lets the base train again (every base parameter then requires a gradient).

    Returns:
        `aim`.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: Read weights are part of widened weights (concat form).
    """
    module = _transformed(aim)
    _refuse_widened(module, "freeze_base can't freeze a part of a weight")
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not name.startswith(f"{AIM}."):
            parameter.requires_grad_(not frozen)
    module._record.frozen = frozen
    return module.train(module.training)


class disable_memory:  # noqa: N801  (reads as a verb, and works as a context manager)
    """Let `aim` compute what its base computes, at once and until `enable_memory`.

    Also a context manager, which restores what was before:

        >>> with aimgraph.disable_memory(aim):  # doctest: +SKIP
        ...     plain = aim(x)

    Args:
        aim: A transformed module; changed in place.

    Raises:
        PlanError: `aim` was not transformed.
    """

    def __init__(self, aim: nn.Module) -> None:
        self.aim = _transformed(aim)
        self.before = self.aim._record.enabled
        _enable(self.aim, False)

    def __enter__(self) -> AimModule:
        return self.aim

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _enable(self.aim, self.before)


def enable_memory(aim: nn.Module) -> AimModule:
    """Let the memory take part again after `disable_memory`.

    Raises:
        PlanError: `aim` was not transformed.
    """
    return _enable(_transformed(aim), True)


def _enable(aim: AimModule, enabled: bool) -> AimModule:
    aim._record.enabled = enabled
    aim._select()
    return aim


def _transformed(aim: Any) -> AimModule:
    if not isinstance(aim, AimModule):
        raise PlanError(f"this {type(aim).__name__} has no memory: it is not the result of aimgraph.transform")
    return aim


def _refuse_widened(aim: AimModule, what: str) -> None:
    if aim._record.widened:
        raise ConfigError(
            f'{what} in concat form ({aim._record.widened[0].site}): transform with lowering="split" instead; '
            "the state dict of this module loads into it"
        )
