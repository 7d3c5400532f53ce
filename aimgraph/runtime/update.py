"""How features are written into a memory during the forward pass: U(M, X)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.read import ReadSpec, fit, read_channels, read_style, read_view

WIDTHS = (16, 16, 32)
"""Channels of the three convolutions of an update block, as in the article's code."""

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Update(nn.Module):
    """New memory values from features and the present memory.

    On features with a grid: [X ; read(M)] -> 3 x (conv 3 'same' -> BN -> sigmoid; 16, 16, 32
    channels) -> adaptive average pool to the memory's grid -> conv 1 to its channels. On [B, F]:
    linear -> sigmoid -> linear, with 32 hidden units.

    Args:
        shape: The memory's shape, (rows, cols, channels) or (N,).
        features: C, channels of X.
        grid: Grid of X as planned; () for [B, F].
        batch_axis: Dimension of X that carries the batch.
        channel_axis: Dimension of X that carries the channels.
        read: How M is read next to X: ``"reshape"`` or ``"resize"``.
        mode: ``"replace"`` M, or mix: (1 - g) * M + g * new with a learned gate g (``"gated"``).
        pool: ``None``: one memory per sample; ``"batch"``: their mean, [1, N].
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        features: int,
        grid: tuple[int, ...],
        batch_axis: int,
        channel_axis: int,
        *,
        read: str = "reshape",
        mode: str = "replace",
        pool: str | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.batch_axis, self.channel_axis = batch_axis, channel_axis
        self.mode, self.pool = mode, pool
        self.spec = update_read(shape, grid, read)
        channels, outputs = features + self.spec.channels, math.prod(shape[-1:])
        self.hidden = _blocks(channels, len(grid))
        heads = {"replace": 1, "gated": 2}[mode]
        self.head: nn.Module = (
            _CONV[1 if len(grid) == 1 else 2](WIDTHS[-1], heads * outputs, 1)
            if grid
            else nn.Linear(WIDTHS[-1], heads * math.prod(shape))
        )

    def forward(self, memory: Tensor, features: Tensor) -> Tensor:
        """The memory after this update.

        Args:
            memory: [1, N] or [B, N].
            features: X, in the layout and rank it was planned for; the grid may differ.

        Returns:
            [B, N], or [1, N] with ``pool="batch"``.
        """
        x = features.movedim((self.batch_axis, self.channel_axis), (0, 1)).to(memory.dtype)
        view = fit(read_view(memory, self.spec), x, channel_axis=1, batch_axis=0)
        hidden = self.hidden(torch.cat([x, view.expand(x.shape[0], *view.shape[1:])], dim=1))
        if hidden.dim() > 2:
            hidden = _pool(hidden, self.shape)
        new, gate = self._heads(self.head(hidden))
        if gate is not None:
            new = memory + torch.sigmoid(gate) * (new - memory)
        return new.mean(0, keepdim=True) if self.pool == "batch" else new

    def _heads(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, C, *G] -> one [B, N] in (row, column, channel) order per head."""
        heads = out.chunk(2, dim=1) if self.mode == "gated" else (out,)
        flat = [head.movedim(1, -1).flatten(1) for head in heads]
        return flat[0], flat[1] if len(flat) > 1 else None


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


def update_read(shape: tuple[int, ...], grid: tuple[int, ...], read: str) -> ReadSpec:
    """How an update reads its own memory next to features of `grid`, channels first."""
    size = math.prod(shape)
    if read == "resize" and len(grid) == 2 and len(shape) == 3:
        return ReadSpec("resize", size, shape[:2], shape[2], 0, 1)
    return ReadSpec(read_style(size, grid), size, grid, read_channels(size, grid), 0, 1)


def update_parameters(shape: tuple[int, ...], features: int, grid: tuple[int, ...], read: str, mode: str) -> int:
    """How many parameters the `Update` with these arguments has (tested against the module)."""
    inputs = features + update_read(shape, grid, read).channels
    heads = 2 if mode == "gated" else 1
    if not grid:
        hidden = WIDTHS[-1]
        return inputs * hidden + hidden + (hidden + 1) * heads * math.prod(shape)
    total, taps = 0, 3 ** len(grid)
    for width in WIDTHS:
        total += inputs * width * taps + width + 2 * width
        inputs = width
    return total + (inputs + 1) * heads * shape[-1]


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
