"""How a call of a layer lays out its input: batch, channels and grid."""

import math
from typing import TypeAlias

from torch import fx, nn

from aimgraph.planning.sites import SiteCall
from aimgraph.runtime.layer_kinds import kind_of
from aimgraph.runtime.layers import read_weight_shape

Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Of one tensor at two batch sizes."""


def kernel_taps(layer: nn.Module) -> int:
    """Parameters of a read weight per memory channel."""
    return math.prod(read_weight_shape(layer, 1))


def call_layout(
    graph: str,
    node: fx.Node,
    shapes: Shapes,
    layer: nn.Module,
    batches: tuple[int, int],
    *,
    grouped_batch: bool,
    chance: bool,
) -> SiteCall | str:
    """Batch, channels and grid of an input from its shapes at two batch sizes, or why they can't be told.

    With `chance`, sizes may depend on values, so that a first dimension that is the same at both is no grid. With
    `grouped_batch`, the input is [1, B * C, *S], and the convolution has one group, or g, per sample.
    """
    shape, other = shapes
    if grouped_batch and shape[0] != 1:
        return f"its groups grow with the batch, but its input {list(shape)} is not one sample of all their channels"
    if grouped_batch:
        return SiteCall(graph, node.name, tuple(shape), tuple(shape[2:]), 0, 1, 1, grouped_batch=True)
    if len(shape) != len(other):
        return f"its input {list(shape)} has {len(other)} dimensions at another batch size"
    rank = len(kind_of(layer).kernel(layer))
    channel_axis = len(shape) - 1 - rank
    varying = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
    outer = range(channel_axis) if rank else range(len(shape) - 1)
    if len(varying) > 1 or any(axis not in outer for axis in varying):
        return f"its input {list(shape)} changes in dimensions {varying} with the batch size: no one batch dimension"
    batch_axis = varying[0] if varying else (0 if (rank or chance) and channel_axis else None)
    ratio = _ratio(shape[batch_axis], other[batch_axis], *batches) if varying and batch_axis is not None else 0
    if chance and batch_axis == 0 and not varying:
        ratio = -1
    grid = tuple(size for axis, size in enumerate(shape) if axis not in (channel_axis, batch_axis))
    if 0 in grid:
        return f"its input {list(shape)} is empty"
    return SiteCall(graph, node.name, tuple(shape), grid, batch_axis, ratio, channel_axis)


def unfit(shapes: Shapes, *, grouped_batch: bool) -> str:
    """Why memory channels can't join a weight of these shapes at two batch sizes; empty if they can."""
    if len(shapes[0]) < 2:
        return f"its weight {list(shapes[0])} is a vector: the output has no channels"
    if shapes[0] != shapes[1] and not grouped_batch:
        return f"its weight {list(shapes[0])} changes with the batch size: a product of two features"
    return ""


def _ratio(size: int, other: int, batch: int, second: int) -> int:
    """``r`` where a dimension is ``r * B`` at both batch sizes; -1 where it depends on B in another way."""
    ratio = size // batch
    return ratio if (size, other) == (ratio * batch, ratio * second) else -1
