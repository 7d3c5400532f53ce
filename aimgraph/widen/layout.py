"""Where copies of channels lie: behind their channel in what makes it, and where the forward puts them in all else."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aimgraph.widen.analysis import Analysis
from aimgraph.widen.flow import Numbering
from aimgraph.widen.ties import FIXED, Ties, components


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
        return tuple(
            size + int(self.copies[self.line(name, axis, size)].sum()) for axis, size in enumerate(shape)
        )


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
    lost: list[Tensor] = []
    sources: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for place, (name, axis) in enumerate(analysis.numbering.names):
        old = growth.line(name, axis, analysis.numbering.sizes[place])
        if not growth.copies[old].any():
            continue
        start = numbering.starts[name, axis]
        new = codes[start : start + numbering.sizes[place]]
        source = _matched(analysis.same[old], growth.copies[old], new, most)
        if source is None:
            lost.append(old[growth.copies[old] > 0])
        else:
            sources[name, axis] = (source, new % most)
    return Layout(sources, torch.unique(clashes), torch.cat(lost) if lost else torch.zeros(0, dtype=torch.int64))


def _codes_of_makers(growth: Growth, numbering: Numbering, most: int) -> Tensor:
    """New channel -> old channel and number of the copy as one number, where a layer makes it; -1 elsewhere."""
    analysis = growth.analysis
    codes = torch.full((numbering.size,), -1)
    for place, (name, axis) in enumerate(analysis.numbering.names):
        old = growth.line(name, axis, analysis.numbering.sizes[place])
        if not analysis.made[old].any():
            continue
        times = growth.copies[old] + 1
        first = times.cumsum(0) - times
        number = torch.arange(int(times.sum())) - first.repeat_interleave(times)
        start = numbering.starts[name, axis]
        codes[start : start + len(number)] = analysis.same[old].repeat_interleave(times) * most + number
    codes[FIXED] = -1
    return codes


def _matched(old: Tensor, copies: Tensor, new: Tensor, most: int) -> Tensor | None:
    """The old position of each new one: the k-th number of a channel's copy is that of the channel's k-th number.

    Args:
        old: The channel of each old position.
        copies: How many copies it gets.
        new: Channel and copy of each new position as one number; -1 where that is not known.
        most: One more than the largest number of a copy.
    """
    grown = copies > 0
    if bool((new < 0).any()):
        fixed = old[~grown]
        return None if len(fixed) != int((new < 0).sum()) or not _rest_is_ordered(new, grown) else _partly(old, copies, new, most)
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


def _rest_is_ordered(new: Tensor, grown: Tensor) -> bool:
    return bool(grown.any()) and bool((new >= 0).any())


def _partly(old: Tensor, copies: Tensor, new: Tensor, most: int) -> Tensor | None:
    """As `_matched`, where some channels don't grow and nothing makes them: they lie in order."""
    grown, known = copies > 0, new >= 0
    inner = _matched(old[grown], copies[grown], new[known], most)
    if inner is None:
        return None
    source = torch.empty_like(new)
    source[known] = grown.nonzero().flatten()[inner]
    source[~known] = (~grown).nonzero().flatten()
    return source
