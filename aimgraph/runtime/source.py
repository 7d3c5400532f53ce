"""Where a memory's initial value comes from."""

import torch
from torch import Tensor, nn

PARAMETER_STD = 0.02


class ParameterSource(nn.Module):
    """N free values, drawn from N(0, 0.02^2).

    Args:
        size: N.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all values anew."""
        with torch.no_grad():
            self.value.copy_(torch.randn(self.value.shape) * PARAMETER_STD)

    def forward(self) -> Tensor:
        """The values, [1, N]."""
        value = self.value if torch.is_grad_enabled() else self.value.detach()  # a view of it would require gradients
        return value.unsqueeze(0)


class OnesConvSource(nn.Module):
    """The article's source: a linear layer fed with ones, so that its weights are the memory.

    For a shape (rows, cols, channels) a 1x1 convolution with as many input as output channels,
    which yields the same `channels` values at every position; for (N,) a dense layer with one
    input, so that a weight plus a bias is one value.

    Args:
        shape: (rows, cols, channels) or (N,).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        channels = shape[-1]
        self.layer: nn.Conv2d | nn.Linear = (
            nn.Conv2d(channels, channels, 1) if len(shape) == 3 else nn.Linear(1, channels)
        )

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.layer.reset_parameters()

    def forward(self) -> Tensor:
        """The values in (row, column, channel) order, [1, N]."""
        weight = self.layer.weight
        if len(self.shape) == 1:
            return torch.as_tensor(self.layer(weight.new_ones(1, 1)))
        rows, cols, channels = self.shape
        map_ = self.layer(weight.new_ones(1, channels, rows, cols))
        return torch.as_tensor(map_).permute(0, 2, 3, 1).reshape(1, -1)


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


def source_parameters(kind: str, shape: tuple[int, ...], size: int) -> int:
    """How many parameters a source of this kind holds."""
    if kind == "parameter":
        return size
    channels = shape[-1]
    return channels * channels + channels if len(shape) == 3 else 2 * channels
