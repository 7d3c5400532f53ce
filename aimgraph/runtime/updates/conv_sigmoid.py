"""The article's block: three convolutions with sigmoids, pooled to the memory's grid."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.reads.view import fit, read_view, view_of
from aimgraph.runtime.specs import PARTS, BlockSpec, ReadSpec
from aimgraph.runtime.updates.update import Update

WIDTHS = (16, 16, 32)
"""Channels of the three convolutions of an update block, as in the article's code."""

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class ConvSigmoid(Update):
    """New memory values from features and the present memory.

    On features with a grid: [X ; read(M)] -> 3 x (conv 3 'same' -> BN -> sigmoid; 16, 16, 32
    channels) -> adaptive average pool to the memory's grid -> conv 1 to its channels. On [B, F]:
    linear -> sigmoid -> linear, with 32 hidden units. A gate is a second head.

    Args:
        spec: Of the memory and the features.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.shape, self.gated = spec.shape, spec.gated
        self.spec, self.view = view_of(spec.read, ReadSpec(spec.shape, spec.grid))
        self.hidden = _blocks(spec.features + self.spec.channels, spec.rank)
        heads = 2 if spec.gated else 1
        self.head: nn.Module = (
            _CONV[1 if spec.rank == 1 else 2](WIDTHS[-1], heads * math.prod(spec.shape[-1:]), 1)
            if spec.grid
            else nn.Linear(WIDTHS[-1], heads * spec.size)
        )

    def zero_(self) -> None:
        """Make the last layer zero: nothing is written until it is trained."""
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def writes_zeros(self) -> bool:
        """Whether the last layer is zero."""
        return all(one.is_meta or not bool(one.any()) for one in self.head.parameters())

    def heads(self, memory: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, N] in (row, column, channel) order per head."""
        view = fit(read_view(memory, self.spec, self.view), features, channel_axis=1, batch_axis=0)
        hidden = self.hidden(
            torch.cat([features, view.expand(features.shape[0], *[-1] * (len(self.spec.grid) + 1))], dim=1)
        )
        if hidden.dim() > 2:
            hidden = _pool(hidden, self.shape)
        out = self.head(hidden)
        heads = out.chunk(2, dim=1) if self.gated else (out,)
        flat = [head.movedim(1, -1).flatten(1) for head in heads]
        return flat[0], flat[1] if self.gated else None


class SampleNorm(nn.Module):
    """Batch normalisation that falls back on running statistics where one value is all there is.

    With one sample on a grid of one position there is no variance to normalise by; torch refuses
    in train mode. The base may well run there, so the update must, too.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.norm = _NORM[rank](channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, *S] -> [B, C, *S]."""
        if self.training and x.shape[0] * math.prod(x.shape[2:]) <= 1:
            norm = self.norm
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return torch.as_tensor(self.norm(x))


def _blocks(channels: int, rank: int) -> nn.Sequential:
    if rank == 0:
        return nn.Sequential(nn.Linear(channels, WIDTHS[-1]), nn.Sigmoid())
    layers: list[nn.Module] = []
    for width in WIDTHS:
        layers += [_CONV[rank](channels, width, 3, padding="same"), SampleNorm(width, rank), nn.Sigmoid()]
        channels = width
    return nn.Sequential(*layers)


def _pool(hidden: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[B, C, *S] averaged to the memory's grid, [B, C, *G].

    (N,) has one position; a sequence is pooled to rows * cols positions; of a volume, depth and
    height together become the rows.
    """
    rows, cols = shape[:2] if len(shape) == 3 else (1, 1)
    if hidden.dim() == 3:
        return F.adaptive_avg_pool1d(hidden, rows * cols)
    return F.adaptive_avg_pool2d(hidden.flatten(2, -2) if hidden.dim() == 5 else hidden, (rows, cols))


PARTS["block"]["conv_sigmoid"] = ConvSigmoid
