"""Which parameters of a memory learn: those that had a gradient in some step, and moved."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from aimgraph.distance import dense


class Watch:
    """Looks at the gradients of some parameters until each has had one.

    Make it before the first step, and before the state of an interrupted training is loaded: it keeps the values.

    Args:
        learns: Name -> parameter that should learn.
        seen: Names of those that had a gradient already, in an earlier part of the same training.

    Attributes:
        seen: Names of the parameters that had a gradient in some step.
    """

    def __init__(self, learns: Mapping[str, nn.Parameter], seen: Iterable[str] = ()) -> None:
        self.learns = dict(learns)
        self.seen = {name for name in seen if name in self.learns}
        self._before = {name: one.detach().clone() for name, one in self.learns.items()}

    def step(self) -> None:
        """Look at the gradients; to be called after each backward pass, before they are set to zero."""
        for name, parameter in self.learns.items():
            if name not in self.seen and _has_gradient(parameter):
                self.seen.add(name)

    def still(self) -> list[str]:
        """Names of those that had no gradient in any step, all zero or none, or are bit for bit what they were."""
        return [name for name, one in self.learns.items() if name not in self.seen or not self._moved(name, one)]

    def _moved(self, name: str, parameter: nn.Parameter) -> bool:
        return not torch.equal(self._before[name].to(parameter.device), parameter.detach())


def _has_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(dense(parameter.grad).any())
