"""Values that a tensor gives."""

from torch import Tensor, nn

from aimgraph.runtime.sources.parameter import ParameterSource
from aimgraph.runtime.specs import PARTS, SourceSpec

GIVEN = "given"
"""Name of this source in a checkpoint, whose tensors hold the values."""


class GivenSource(ParameterSource):
    """N values that begin as those of a tensor.

    Args:
        spec: Of the memory.
        values: The tensor, of N values in (row, column, channel) order; None if they are still to come.
    """

    def __init__(self, spec: SourceSpec, values: Tensor | None = None) -> None:
        super().__init__(spec)
        if values is None:
            self.zero_()
        else:
            self.value = nn.Parameter(values.detach().reshape(-1).clone())

    def reset_parameters(self) -> None:
        """Keep the values: a new memory set begins with those that it is copied from."""


PARTS["source"][GIVEN] = GivenSource
