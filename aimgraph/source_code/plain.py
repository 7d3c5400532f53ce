"""What a memory needs at run time, with torch alone: the source of a module has copies of what it uses of this."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fit(view: Tensor, like: Tensor, channel_axis: int = 1, batch_axis: int | None = 0) -> Tensor:
    """A view of the memory on the grid of `like`, a layer's input: resampled if need be, and laid out as that is."""
    axes = [axis for axis in range(like.dim()) if axis not in (channel_axis, batch_axis)]
    grid = [like.shape[axis] for axis in axes]
    if [view.shape[axis] for axis in axes] != grid:
        order = [axis for axis in (batch_axis, channel_axis) if axis is not None] + axes
        moved = view.permute(order) if batch_axis is not None else view.permute(order).unsqueeze(0)
        mode = ("linear", "bilinear", "trilinear")[len(axes) - 1]
        moved = F.interpolate(moved, size=grid, mode=mode, align_corners=False)
        moved = moved if batch_axis is not None else moved.squeeze(0)
        view = moved.permute([order.index(axis) for axis in range(view.dim())])
    if channel_axis != like.dim() - 1 and like.shape[channel_axis] > 1 and like.stride(channel_axis) == 1:
        view = view.movedim(channel_axis, -1).contiguous().movedim(-1, channel_axis)
    return view


def expand_batch(view: Tensor, like: Tensor, batch_axis: int | None = 0) -> Tensor:
    """A view with as many samples as `like` has."""
    if batch_axis is None:
        return view
    sizes = list(view.shape)
    sizes[batch_axis] = like.shape[batch_axis]
    return view.expand(sizes)


class Carry(nn.Module):
    """A memory that reaches the next batch: source + state; a forward moves the state towards what it has written.

    Args:
        size: Values of the memory.
        rate: Of the move.
        write_in_eval: Whether forwards in eval mode move it, too.
    """

    def __init__(self, size: int, rate: float, write_in_eval: bool = False) -> None:
        super().__init__()
        self.size, self.rate, self.write_in_eval = size, rate, write_in_eval
        self.state: Tensor
        self.register_buffer("state", torch.zeros(size))

    def forward(self, source: Tensor, last: Tensor | None = None) -> Tensor | None:
        """The memory to begin with, [1, N]; or, given its last value, [B, N], a move of the state."""
        if last is None:
            return source + self.state
        if self.training or self.write_in_eval:
            self._write(source.detach(), last.detach())
        return None

    @torch.no_grad()
    def _write(self, source: Tensor, last: Tensor) -> None:
        mean = last.sum(0, dtype=torch.promote_types(last.dtype, torch.float32)) / last.shape[0]
        moved = torch.lerp(self.state, (mean - source[0]).to(self.state.dtype), self.rate)
        self.state.copy_(torch.where(moved.isfinite().all(), moved, self.state))
