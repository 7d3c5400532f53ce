"""How a memory is shown to a site: as channels on a grid, laid out and resampled as the site's input is.

A memory of N values, ordered (row, column, channel), becomes k channels on a grid S of P = prod(S)
positions. The functions here run in the emitted graph; `read_view` works on a `torch.fx.Proxy` as
well, and that is how `insert_memory` writes the same operations into a graph.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.errors import ConfigError, ExampleInputError
from aimgraph.runtime.specs import Factory, ReadSpec
from aimgraph.torch_private import is_exporting, same_sizes

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class ViewSpec:
    """How N values become k channels in the layout of a site's input.

    Attributes:
        style: ``reshape``: pad to k * P and reshape; ``centred``: one channel, a centred square;
            ``resize``: the (rows, cols) map, to be resampled to the grid; ``module``: what a module gives.
        size: N.
        grid: Grid of the view (S, or (rows, cols) for ``resize``).
        channels: k.
        batch_axis: Dimension of the site's input that carries the batch, or None.
        channel_axis: Dimension of the site's input that carries the channels.
    """

    style: str
    size: int
    grid: tuple[int, ...]
    channels: int
    batch_axis: int | None = 0
    channel_axis: int = 1


def view_of(factory: Factory, spec: ReadSpec) -> tuple[ViewSpec, nn.Module | None]:
    """What a read makes of a memory: a layout alone, or a module and the layout that it gives.

    Args:
        factory: Gives a `ViewSpec`, whose few operations are written into the graph, or a module.
        spec: For it.

    Raises:
        ConfigError: It gives something else, or its module does.
    """
    made = factory(spec)
    if isinstance(made, ViewSpec):
        return made, None
    if not isinstance(made, nn.Module):
        raise ConfigError(f"it gives a {type(made).__name__}; a read is a torch.nn.Module")
    training = made.training
    with torch.no_grad():
        shown = made.eval()(torch.zeros(1, spec.size))
    made.train(training)
    sizes = tuple(shown.shape) if isinstance(shown, Tensor) else ()
    if len(sizes) != len(spec.grid) + 2 or sizes[0] != 1 or 0 in sizes:
        told = list(sizes) if isinstance(shown, Tensor) else type(shown).__name__
        raise ConfigError(
            f"from a memory [1, {spec.size}] it makes {told}; for the grid {list(spec.grid)} a read gives "
            f"[B, {''.join('size, ' for _ in spec.grid)}channels]"
        )
    return ViewSpec("module", spec.size, sizes[1:-1], sizes[-1]), made


def read_view(memory: Tensor, spec: ViewSpec, module: nn.Module | None = None) -> Tensor:
    """The memory as channels on ``spec.grid``, in the layout of the site's input.

    Args:
        memory: [B, N] or [1, N].
        spec: How to lay it out.
        module: Shows it on a grid, where the style is ``module``.

    Returns:
        B (or 1) on ``batch_axis`` if there is one, k on ``channel_axis``, the grid on the rest.
        Without a batch axis the first (only) sample is taken.
    """
    return laid_out(_on_grid(memory, spec) if module is None else module(memory), spec)


def laid_out(view: Tensor, spec: ViewSpec) -> Tensor:
    """[B, *S, k] in the layout of the site's input; see `read_view`."""
    if spec.batch_axis is None:
        view = view.select(0, 0)
    order = _axis_order(spec)
    if order == sorted(order):
        return view
    if spec.channels == 1 and spec.batch_axis in (None, 0):  # one channel may stand dispatched between the others
        sizes = [-1, *spec.grid, 1][int(spec.batch_axis is None) :]
        return view.reshape([sizes[axis] for axis in order])
    return view.permute(order).clone(memory_format=torch.contiguous_format)


def square_side(size: int) -> int:
    """ceil(sqrt(N))."""
    return math.isqrt(size - 1) + 1


def _on_grid(memory: Tensor, spec: ViewSpec) -> Tensor:
    """[B, N] -> [B, *S, k]."""
    grid, size, channels = spec.grid, spec.size, spec.channels
    if spec.style == "centred":
        side = square_side(size)
        square = _pad_end(memory, side * side - size).reshape(-1, side, side)
        top, left = (grid[0] - side) // 2, (grid[1] - side) // 2
        map_ = F.pad(square, (left, grid[1] - side - left, top, grid[0] - side - top))
        return map_.unsqueeze(-1)
    return _pad_end(memory, channels * math.prod(grid) - size).reshape(-1, *grid, channels)


def _pad_end(memory: Tensor, count: int) -> Tensor:
    return F.pad(memory, (0, count)) if count else memory


def _axis_order(spec: ViewSpec) -> list[int]:
    """Where each dimension of the site's input comes from in [B, *S, k] (or [*S, k])."""
    first = int(spec.batch_axis is not None)
    last = first + len(spec.grid)
    grid_axes, source = iter(range(first, last)), {spec.batch_axis: 0, spec.channel_axis: last}
    return [source[axis] if axis in source else next(grid_axes) for axis in range(last + 1)]


def fit(view: Tensor, like: Tensor, channel_axis: int, batch_axis: int | None, site: str = "a layer") -> Tensor:
    """`view` resampled (linear, align_corners=False) to the grid of `like`; itself if it fits.

    It follows `like` to its device and dtype, where layers of one model differ in these. A single sample without a
    batch dimension is given a view without one; more dimensions of a linear layer's input than it had all see the
    same, if it had none but batch and features.

    Resampling is separable: a grid of more than three dimensions is resampled one dimension after the other.

    Args:
        view: The memory in the layout of the site's input.
        like: The input.
        channel_axis: Dimension of the channels in `view`.
        batch_axis: Dimension of the batch in `view`, or None.
        site: The layer, for messages.

    Raises:
        ExampleInputError: `like` has another number of dimensions, and no view follows from this one.
    """
    if view.dim() != like.dim():
        made = at_rank(view, like, channel_axis, batch_axis)
        if made is None:
            raise ExampleInputError(
                f"{site} reads its memory in a layout of {view.dim()} dimensions, those of its input for the example "
                f"inputs, and its input is {list(like.shape)} now: transform the model with example inputs of this kind"
            )
        view, channel_axis, batch_axis = made
    if view.dtype != like.dtype or view.device != like.device:
        view = view.to(like)
    axes = list(range(like.dim()))
    for axis in (channel_axis, batch_axis):
        if axis is not None:
            axes.remove(axis)
    grid = _sizes(like, axes)
    if not same_sizes(_sizes(view, axes), grid):
        view = _resampled(view, axes, grid, channel_axis, batch_axis)
    return _laid_out(view, like, channel_axis)


def _sizes(tensor: Tensor, axes: list[int]) -> list[int]:
    """Some sizes of a tensor.

    No comprehension: torch.compile takes what one closes over from another call of the function that it is in.
    """
    found = []
    for axis in axes:
        found.append(tensor.shape[axis])  # noqa: PERF401
    return found


def _resampled(view: Tensor, axes: list[int], grid: list[int], channel_axis: int, batch_axis: int | None) -> Tensor:
    """`view` on another grid, whose dimensions are `axes`."""
    if view.is_complex():
        parts = (_resampled(part, axes, grid, channel_axis, batch_axis) for part in (view.real, view.imag))
        return torch.complex(*parts)
    if any(same_sizes([size], [0]) for size in grid):  # an expert without samples
        sizes = dict(zip(axes, grid, strict=True))
        return view.new_zeros([sizes.get(axis, size) for axis, size in enumerate(view.shape)])
    if len(axes) not in _INTERPOLATION:
        for axis, size in zip(axes, grid, strict=True):
            view = _resampled_along(view, axis, size)
        return view
    order = [channel_axis, *axes] if batch_axis is None else [batch_axis, channel_axis, *axes]
    moved = view.permute(order) if batch_axis is not None else view.permute(order).unsqueeze(0)
    moved = F.interpolate(moved, size=grid, mode=_INTERPOLATION[len(axes)], align_corners=False)
    moved = moved if batch_axis is not None else moved.squeeze(0)
    back = [0] * len(order)
    for place, axis in enumerate(order):
        back[axis] = place
    return moved.permute(back)


def at_rank(
    view: Tensor, like: Tensor, channel_axis: int, batch_axis: int | None
) -> tuple[Tensor, int, int | None] | None:
    """The view for an input of another number of dimensions, with its axes; None if none follows from it."""
    grid, last = view.dim() - 1 - (batch_axis is not None), view.dim() - 1
    if batch_axis is not None and view.shape[batch_axis] != 1:  # what every sample has written
        return None
    linear = channel_axis == last
    if batch_axis is not None and like.dim() == last and not (linear and grid):
        return view.select(batch_axis, 0), channel_axis - (channel_axis > batch_axis), None
    if linear and not grid and like.dim() > view.dim():
        return view.reshape(*[1] * (like.dim() - 1), -1).expand(1, *like.shape[1:-1], -1), like.dim() - 1, 0
    return None


def _laid_out(view: Tensor, like: Tensor, channel_axis: int) -> Tensor:
    """`view` with its channels side by side in memory if those of `like` are: as a layer's output is, so is its term.

    Adding tensors that are laid out in different ways takes several times as long.
    """
    last = like.dim() - 1
    if is_exporting() or channel_axis == last or like.shape[channel_axis] == 1 or like.stride(channel_axis) != 1:
        return view
    return view.movedim(channel_axis, last).contiguous().movedim(last, channel_axis)


def _resampled_along(view: Tensor, axis: int, size: int) -> Tensor:
    """`view` with `size` entries along one dimension."""
    if same_sizes([view.shape[axis]], [size]):
        return view
    rows = view.movedim(axis, -1)
    made = F.interpolate(rows.reshape(1, -1, rows.shape[-1]), size=size, mode="linear", align_corners=False)
    return made.reshape(*rows.shape[:-1], size).movedim(-1, axis)


def expand_batch(view: Tensor, like: Tensor, batch_axis: int | None) -> Tensor:
    """`view` with the batch of `like`: what concatenation needs and addition does not."""
    if batch_axis is None or same_sizes([view.shape[batch_axis]], [like.shape[batch_axis]]):
        return view
    shape = list(view.shape)
    shape[batch_axis] = like.shape[batch_axis]
    return view.expand(shape)


def interleave(features: Tensor, views: list[Tensor], groups: int, channel_axis: int) -> Tensor:
    """[x_1 ; m ; x_2 ; m ; ...]: every group of a grouped layer sees its features and the memory.

    Args:
        features: C channels on `channel_axis`.
        views: Memory channels, k_i each, of the same batch and grid.
        groups: g, a divisor of C.
        channel_axis: Dimension of the channels.

    Returns:
        C + g * sum(k_i) channels on `channel_axis`.
    """
    axis = channel_axis
    shared = [view.unsqueeze(axis) for view in views]
    repeated = [view.expand(*view.shape[:axis], groups, *view.shape[axis + 1 :]) for view in shared]
    return torch.cat([features.unflatten(axis, (groups, -1)), *repeated], axis + 1).flatten(axis, axis + 1)


def batch_mean(memory: Tensor) -> Tensor:
    """[B, N] -> [1, N]: what a site reads that can't tell the samples apart."""
    return memory.mean(0, keepdim=True)
