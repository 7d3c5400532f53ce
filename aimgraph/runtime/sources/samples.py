"""One source for each sample."""

import torch
from torch import Tensor, nn


class SampleSources(nn.Module):
    """The values of several sources, one row for each sample of a batch.

    Args:
        sources: Yield [1, N] each; they are not registered here.
        rows: Sample -> which of them, [B].
    """

    def __init__(self, sources: tuple[nn.Module, ...], rows: Tensor) -> None:
        super().__init__()
        self.aim_borrowed = sources
        self.rows = rows

    def forward(self) -> Tensor:
        """The values, [B, N]."""
        values = torch.cat([source() for source in self.aim_borrowed])
        return values[self.rows.to(values.device)]
