"""What a forward says about its channels: which ones grow together, and which ones can't."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aimgraph.widen.labels import FIXED, distinct, pairs


@dataclass(frozen=True)
class Held:
    """Channels that something says no to.

    Attributes:
        ids: The channels, shape (n,).
        reason: Why.
        by_copies: Whether exact copies of all of them are fine.
    """

    ids: Tensor
    reason: str
    by_copies: bool = False


@dataclass
class Ties:
    """Collects what the operations of a forward say.

    Attributes:
        same: Pairs of one and the same channel, shapes (n, 2).
        alike: Pairs of channels of which there must be equally many copies, shapes (n, 2).
        held: Channels that can't grow, or not in every way.
        made: Channels that an operation gives anew: the outputs of layers.
        read: Channels of weights that are summed over.
    """

    same: list[Tensor] = field(default_factory=list)
    alike: list[Tensor] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)
    read: list[Tensor] = field(default_factory=list)

    def tie(self, one: Tensor, other: Tensor, reason: str) -> None:
        """Numbers at the same place belong to the same channel; who meets what can't grow is held for a reason."""
        found = pairs(one, other)
        fixed = (found == FIXED).any(1)
        if fixed.any():
            self.hold(found[fixed], reason)
        if not fixed.all():
            self.same.append(found[~fixed])

    def tie_alike(self, one: Tensor, other: Tensor) -> None:
        """As many copies of the one as of the other."""
        found = pairs(one, other)
        fixed = (found == FIXED).any(1)
        if fixed.any():
            self.hold(found[fixed], "as many of them as of channels that can't grow")
        if not fixed.all():
            self.alike.append(found[~fixed])

    def hold(self, ids: Tensor, reason: str, *, by_copies: bool = False) -> None:
        """Channels that can't grow; with `by_copies`, but as exact copies."""
        own = unique(ids)
        if len(own):
            self.held.append(Held(own, reason, by_copies))

    def hold_whole(self, ids: Tensor, reason: str) -> None:
        """Channels over which something averages: all of them grow by the same factor, as copies, or none."""
        own = unique(ids)
        if len(own) and bool((ids == FIXED).any()):
            self.hold(own, reason)
        elif len(own):
            self.alike.append(torch.stack([own, own[:1].expand_as(own)], 1)[1:])
            self.hold(own, reason, by_copies=True)


def unique(ids: Tensor) -> Tensor:
    """The channels that stand in a tensor, each once, without those that can't grow."""
    for axis in range(ids.dim() - 1, -1, -1):
        if ids.stride(axis) == 0 and ids.shape[axis]:
            ids = ids.narrow(axis, 0, 1)
    found: Tensor = torch.unique(ids)
    return found[found != FIXED]


def components(size: int, ties: Sequence[Tensor]) -> Tensor:
    """The smallest channel that each channel is tied to, directly or not.

    Args:
        size: How many channels there are.
        ties: Pairs of channels, shapes (n, 2).

    Returns:
        int64 of shape (size,).
    """
    label = torch.arange(size)
    if not ties:
        return label
    both = distinct(torch.cat(list(ties)))
    one, other = both[:, 0], both[:, 1]
    while True:
        lowest = torch.minimum(label[one], label[other])
        new = label.clone()
        for end in (one, other, label[one], label[other]):
            new.scatter_reduce_(0, end, lowest, "amin")
        new = new[new]
        if torch.equal(new, label):
            return label
        label = new
