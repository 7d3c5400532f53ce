"""N free values."""

import math

import torch
from torch import Tensor, nn

from aimgraph.reproducible import uniform
from aimgraph.runtime.specs import PARTS, SourceSpec
from aimgraph.torch_private import is_jit_tracing


class ParameterSource(nn.Module):
    """N free values, drawn from U(-a, a) with a = sqrt(3) * deviation.

    Args:
        spec: Of the memory.
    """

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__()
        self.shape, self.deviation = spec.shape, spec.deviation
        self.value = nn.Parameter(torch.empty(spec.size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all values anew; on the CPU, where they are the same on every machine."""
        if not self.value.is_meta:
            bound = math.sqrt(3) * self.deviation
            with torch.no_grad():
                self.value.copy_(uniform(self.value.shape, bound))

    def zero_(self) -> None:
        """Make all values zero."""
        with torch.no_grad():
            self.value.zero_()

    def forward(self) -> Tensor:
        """The values, [1, N]."""
        plain = torch.is_grad_enabled() or is_jit_tracing()  # a trace is looked at in both grad modes
        value = self.value if plain else self.value.detach()  # a view of it would require gradients
        return value.unsqueeze(0)


PARTS["source"]["parameter"] = ParameterSource
