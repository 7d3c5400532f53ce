"""The widened model: a copy whose tensors have grown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.widen.layout import Growth, Layout
from aimgraph.widen.rewrite import replace_tensors
from aimgraph.widen.subject import like, tensors_of

How = Literal["copy", "zero"]


@dataclass(frozen=True)
class Grown:
    """How one tensor has grown.

    Attributes:
        sources: Axis -> the old position of each new one, and which copy it is; 0 for the channel itself.
        read: Axes that are summed over.
        made: Axes along which a layer makes its channels.
    """

    sources: Mapping[int, tuple[Tensor, Tensor]]
    read: frozenset[int]
    made: frozenset[int]


def grown_tensors(growth: Growth, layout: Layout) -> dict[str, Grown]:
    """Name of each parameter and buffer that grows -> how."""
    analysis = growth.analysis
    found: dict[str, Grown] = {}
    for name, shape in growth.shapes.items():
        sources = {axis: layout.sources[name, axis] for axis in range(len(shape)) if (name, axis) in layout.sources}
        if sources:
            lines = {axis: growth.line(name, axis, shape[axis]) for axis in sources}
            read = frozenset(axis for axis, own in lines.items() if bool(analysis.read[own].any()))
            made = frozenset(axis for axis, own in lines.items() if bool(analysis.made[own].any()))
            found[name] = Grown(sources, read, made)
    return found


def built(
    model: nn.Module, grown: Mapping[str, Grown], how: How = "copy", noise: float = 0.0, seed: int = 0
) -> nn.Module:
    """A copy of a model with more channels.

    Args:
        model: It is not changed.
        grown: How its tensors grow.
        how: Whether new channels are copies, or drawn and not read yet.
        noise: How unequally copies are read, relative to an equal share.
        seed: Of what is drawn.
    """
    made, generator = copy_module(model), torch.Generator().manual_seed(seed)
    new: dict[int, Tensor] = {}
    for name, tensor in tensors_of(made).items():
        if name in grown:
            with torch.no_grad():
                new[id(tensor)] = like(_values(tensor.detach(), grown[name], how, noise, generator), tensor)
    replace_tensors(made, new)
    return made


def _values(tensor: Tensor, grown: Grown, how: How, noise: float, generator: torch.Generator) -> Tensor:
    for axis, (source, copy) in grown.sources.items():
        drawn = how == "zero" and axis in grown.made and tensor.dim() > 1 and tensor.is_floating_point()
        deviations = _deviations(tensor, axis) if drawn else None
        tensor = tensor.index_select(axis, source.to(tensor.device))
        if axis in grown.read:
            tensor = _shared_out(tensor, axis, source, copy, how, noise, generator)
        elif deviations is not None:
            fresh = _draw(tensor.shape, generator).to(tensor) * deviations.index_select(axis, source.to(tensor.device))
            tensor = torch.where(laid(copy > 0, axis, tensor), fresh, tensor)
    return tensor


def _deviations(tensor: Tensor, axis: int) -> Tensor:
    """The root mean square of what belongs to each channel along an axis."""
    others = [other for other in range(tensor.dim()) if other != axis]
    return tensor.square().mean(others, keepdim=True).sqrt()


def _shared_out(
    tensor: Tensor, axis: int, source: Tensor, copy: Tensor, how: How, noise: float, generator: torch.Generator
) -> Tensor:
    """Weights that read channels: of copies a share each, of new ones nothing."""
    if how == "zero":
        return torch.where(laid(copy > 0, axis, tensor), torch.zeros((), dtype=tensor.dtype), tensor)
    times = torch.bincount(source)
    several = (times[source] > 1).nonzero().flatten()
    if not len(several):
        return tensor
    source, copy, place = source[several], copy[several], several.to(tensor.device)
    part = tensor.index_select(axis, place)
    share = laid(shares(times[source], copy), axis, tensor).to(tensor.dtype)
    if noise:
        share = share * (1 + noise * _unequal(part, axis, source, share, generator))
    return tensor.index_copy_(axis, place, part * share)


def _unequal(part: Tensor, axis: int, source: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers from N(0, 1), less the mean over the copies of each channel, weighted by their shares."""
    drawn = _draw(part.shape, generator).to(part)
    _, channel = torch.unique(source, return_inverse=True)
    shape = list(part.shape)
    shape[axis] = int(channel.max()) + 1
    channel = channel.to(part.device)
    mean = torch.zeros(shape, dtype=part.dtype, device=part.device).index_add_(axis, channel, share * drawn)
    return drawn.sub_(mean.index_select(axis, channel))


def shares(times: Tensor, copy: Tensor) -> Tensor:
    """What part of a weight each of several copies gets: powers of two, so that no weight is rounded.

    Args:
        times: How many there are, the channel itself counted.
        copy: Which one it is.
    """
    power = 2.0 ** torch.floor(torch.log2(times.double()))
    return torch.where(copy < 2 * power - times, 1 / power, 0.5 / power)


def laid(line: Tensor, axis: int, tensor: Tensor) -> Tensor:
    """A vector along an axis of a tensor."""
    shape = [1] * tensor.dim()
    shape[axis] = len(line)
    return line.reshape(shape).to(tensor.device)


def _draw(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)
