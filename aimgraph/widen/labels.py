"""Labels: which channel each number of a tensor belongs to.

Every position along an axis of a parameter or buffer has a number of its own, its *channel*: what a convolution gives
at output channel 3 carries the number of position 3 on the first axis of its weight. A tensor on its way through the
network carries, for each axis along which channels lie, a tensor of its own shape that names the channel of every
number; it is expanded, so it takes next to no memory. 0 stands for what can't grow: a constant, or an input.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FIXED = 0
"""The channel of numbers that can't grow."""


@dataclass(frozen=True)
class Channels:
    """The channels that lie along one axis of a tensor.

    Attributes:
        ids: The channel of each number, int64, of the tensor's shape.
        axis: Where more of them would lie.
        weight: Whether the numbers are those of a parameter or buffer, in another order at most.
    """

    ids: Tensor
    axis: int
    weight: bool = False

    def as_feature(self) -> "Channels":
        """The same channels of numbers that were computed."""
        return replace(self, weight=False) if self.weight else self


Labels = tuple[Channels, ...]
"""What is known of one tensor; at most one entry an axis, but for axes that several were merged into."""


def along(labels: Labels, axis: int) -> Labels:
    """Those that lie along an axis."""
    return tuple(one for one in labels if one.axis == axis)


def apart_from(labels: Labels, axes: Iterable[int]) -> Labels:
    """Those that lie along other axes."""
    left = set(axes)
    return tuple(one for one in labels if one.axis not in left)


def on_axis(ids: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """A vector of channels laid along an axis of a tensor.

    Args:
        ids: Shape (shape[axis],).
        axis: The axis.
        shape: Of the tensor.
    """
    view = [1] * len(shape)
    view[axis] = len(ids)
    return ids.reshape(view).expand(tuple(shape))


def positions(channels: Channels) -> Tensor:
    """Where along their axis numbers stand, as a tensor of the channels' shape: what shows where an axis goes."""
    shape = channels.ids.shape
    return on_axis(torch.arange(shape[channels.axis]), channels.axis, shape)


def per_channel(labels: Labels, dimensions: int) -> Labels:
    """The labels of a vector with a number for each channel, as it meets features of so many dimensions."""
    behind = [None] * (dimensions - 2)
    return tuple(Channels(one.ids[(..., *behind)], 0) for one in labels)


def line(channels: Channels) -> Tensor:
    """The channels along their axis, at the first position of all others: shape (n,)."""
    ids = channels.ids
    for axis in range(ids.dim() - 1, -1, -1):
        if axis != channels.axis:
            ids = ids.select(axis, 0)
    return ids


def varies(ids: Tensor, axis: int) -> bool:
    """Whether positions along an axis differ in their channel."""
    size = ids.shape[axis]
    if size < 2 or ids.stride(axis) == 0:
        return False
    return not torch.equal(ids.narrow(axis, 1, size - 1), ids.narrow(axis, 0, size - 1))


def settled(ids: Tensor, axis: int) -> Tensor:
    """The channels with an axis along which they don't differ taken to size 1."""
    return ids.narrow(axis, 0, 1)


def compact(channels: Channels) -> Channels:
    """The same channels, in no more memory than they differ."""
    ids = channels.ids
    for axis in range(ids.dim()):
        if ids.shape[axis] > 1 and ids.stride(axis) and not varies(ids, axis):
            ids = settled(ids, axis)
    return channels if ids is channels.ids else replace(channels, ids=ids.clone().expand(channels.ids.shape))


def pairs(one: Tensor, other: Tensor) -> Tensor:
    """Each pair of channels that stand at the same place of two tensors, once.

    Args:
        one: Channels, of any shape.
        other: Channels that broadcast with these.

    Returns:
        Shape (n, 2).
    """
    first, second = torch.broadcast_tensors(one, other)
    for axis in range(first.dim() - 1, -1, -1):
        if first.stride(axis) == second.stride(axis) == 0:
            first, second = first.select(axis, 0), second.select(axis, 0)
    first, second = first.reshape(-1), second.reshape(-1)
    differ = first != second
    return distinct(torch.stack([first[differ], second[differ]], 1))


def distinct(both: Tensor) -> Tensor:
    """Each of some pairs once, in order: shape (n, 2)."""
    one = torch.unique(both[:, 0] * _MANY + both[:, 1])  # of numbers: of rows it takes many times as long
    return torch.stack([one // _MANY, one % _MANY], 1)


_MANY = 2**31
"""More than there are channels."""
