"""N free values."""

import torch
from torch import Tensor, nn

from aimgraph.runtime.specs import PARTS, SourceSpec
from aimgraph.torch_private import is_jit_tracing

PARAMETER_STD = 0.02


class ParameterSource(nn.Module):
    """N free values, drawn from N(0, 0.02^2).

    Args:
        spec: Of the memory.
    """

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(spec.size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all values anew."""
        with torch.no_grad():
            self.value.copy_(torch.randn(self.value.shape) * PARAMETER_STD)

    def forward(self) -> Tensor:
        """The values, [1, N]."""
        plain = torch.is_grad_enabled() or is_jit_tracing()  # a trace is looked at in both grad modes
        value = self.value if plain else self.value.detach()  # a view of it would require gradients
        return value.unsqueeze(0)


PARTS["source"]["parameter"] = ParameterSource
