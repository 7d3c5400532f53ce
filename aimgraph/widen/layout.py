"""Where copies of channels lie: behind their channel in what makes it, and where the forward puts them in all else."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aimgraph.widen.analysis import Analysis
from aimgraph.widen.flow import Numbering
from aimgraph.widen.labels import FIXED
from aimgraph.widen.ties import Ties, components


@dataclass(frozen=True)
class Growth:
    """How often each channel is there.

    Attributes:
        analysis: Of the channels.
        copies: How many copies each channel gets: int64 of shape (channels,).
    """

    analysis: Analysis
    copies: Tensor

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Name of a parameter or buffer -> its shape as it was."""
        return self.analysis.numbering.shapes

    def line(self, name: str, axis: int, size: int) -> Tensor:
        """The channels along an axis as it was."""
        start = self.analysis.numbering.starts[name, axis]
        return torch.arange(start, start + size)

    def shape(self, name: str, shape: torch.Size) -> tuple[int, ...]:
        """The shape that a parameter or buffer grows to."""
        return tuple(size + int(self.copies[self.line(name, axis, size)].sum()) for axis, size in enumerate(shape))


@dataclass
class Layout:
    """Which number of the old tensor each number of the new one is.

    Attributes:
        sources: (name, axis) that has grown -> the old position of each new one, and which copy it is, 0 for the
            channel itself; two vectors.
        clashes: Channels of which copies lie where others should.
        lost: Channels of which it can't be told where copies lie.
    """

    sources: dict[tuple[str, int], tuple[Tensor, Tensor]]
    clashes: Tensor
    lost: Tensor

    @classmethod
    def empty(cls) -> "Layout":
        """Nothing has grown."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls({}, none, none)


def lay_out(growth: Growth, numbering: Numbering, ties: Ties) -> Layout:
    """Find out where copies lie, from the forward of the grown model.

    Args:
        growth: How often each channel is there.
        numbering: Of the channels of the grown model.
        ties: What its forward says.
    """
    analysis = growth.analysis
    same = components(numbering.size, ties.same)
    most = int(growth.copies.max()) + 1
    codes = _codes_of_makers(growth, numbering, most)
    low = torch.full((numbering.size,), torch.iinfo(torch.int64).max)
    high = torch.full((numbering.size,), -1)
    known = codes >= 0
    low.scatter_reduce_(0, same[known], codes[known], "amin")
    high.scatter_reduce_(0, same[known], codes[known], "amax")
    clash = (high >= 0) & (low != high)
    clashes = torch.cat([low[clash] // most, high[clash] // most])
    codes = torch.where(known, codes, high[same])
    is_made = torch.zeros(analysis.numbering.size, dtype=torch.bool)
    is_made[analysis.same[analysis.made]] = True
    lost: list[Tensor] = []
    sources: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for place, (name, axis) in enumerate(analysis.numbering.names):
        old = growth.line(name, axis, analysis.numbering.sizes[place])
        if not growth.copies[old].any():
            continue
        start = numbering.starts[name, axis]
        new = codes[start : start + numbering.sizes[place]]
        source = _placed(analysis.same[old], is_made[analysis.same[old]], growth.copies[old], new, most)
        if source is None:
            lost.append(old[growth.copies[old] > 0])
        else:
            sources[name, axis] = (source, torch.where(new < 0, 0, new % most))
    return Layout(sources, torch.unique(clashes), torch.cat(lost) if lost else torch.zeros(0, dtype=torch.int64))


def _codes_of_makers(growth: Growth, numbering: Numbering, most: int) -> Tensor:
    """New channel -> old channel and number of the copy as one number, where a layer makes it; -1 elsewhere."""
    analysis = growth.analysis
    codes = torch.full((numbering.size,), -1)
    for place, (name, axis) in enumerate(analysis.numbering.names):
        old = growth.line(name, axis, analysis.numbering.sizes[place])
        if not analysis.made[old].any():
            continue
        channels, length = torch.unique_consecutive(analysis.same[old], return_counts=True)
        times = growth.copies[channels] + 1
        runs = torch.arange(len(channels)).repeat_interleave(times)  # each run of one channel, then its copies
        number = torch.arange(len(runs)) - (times.cumsum(0) - times)[runs]
        start = numbering.starts[name, axis]
        made = (channels[runs] * most + number).repeat_interleave(length[runs])
        codes[start : start + len(made)] = made
    codes[FIXED] = -1
    return codes


def _placed(old: Tensor, made: Tensor, copies: Tensor, new: Tensor, most: int) -> Tensor | None:
    """The old position of each new one; None where that can't be told.

    Args:
        old: The channel of each old position.
        made: Whether a layer makes that channel; what none makes does not grow, and lies in order.
        copies: How many copies it gets.
        new: Channel and copy of each new position as one number; -1 where nothing makes it.
        most: One more than the largest number of a copy.
    """
    known = new >= 0
    if int((~known).sum()) != int((~made).sum()):
        return None
    inner = _matched(old[made], copies[made], new[known], most)
    if inner is None:
        return None
    source = torch.empty_like(new)
    source[known] = made.nonzero().flatten()[inner]
    source[~known] = (~made).nonzero().flatten()
    return source


def _matched(old: Tensor, copies: Tensor, new: Tensor, most: int) -> Tensor | None:
    """The old position of each new one: the k-th number of a channel's copy is that of the channel's k-th number."""
    order = torch.argsort(old, stable=True)
    channels, counts = torch.unique(old, return_counts=True)
    first = counts.cumsum(0) - counts
    by_code = torch.argsort(new, stable=True)
    codes, found = torch.unique(new, return_counts=True)
    at = torch.searchsorted(channels, codes // most).clamp(max=len(channels) - 1)
    wanted = torch.repeat_interleave(channels, copies[order[first]] + 1)
    if not torch.equal(codes // most, wanted) or not torch.equal(found, counts[at]):
        return None
    rank = torch.arange(len(new)) - (found.cumsum(0) - found).repeat_interleave(found)
    source = torch.empty_like(new)
    source[by_code] = order[first[at].repeat_interleave(found) + rank]
    return source
