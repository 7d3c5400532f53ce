"""Sums, averages and the like over axes, and what sees all numbers along an axis."""

from collections.abc import Sequence

from torch import Tensor

from aimgraph.widen.flow import Call
from aimgraph.widen.labels import Channels, Labels, settled, varies

WHOLE = frozenset({"mean", "var", "var_mean", "std", "std_mean", "var.correction"})
"""What gives the same where every number is there the same number of times."""

OF_COPIES = frozenset({"amax", "amin", "max", "min", "any", "all", "aminmax"})
"""What gives the same where numbers are there more than once."""


def reduce(call: Call) -> list[Labels]:
    """Over some axes; the others stay."""
    source = call["self"] if isinstance(call["self"], Tensor) else call["input"]
    axes, keep = _axes(call, source), bool(call["keepdim"])
    found: list[Channels] = []
    for channels in call.labels(source):
        if channels.axis in axes:
            _over(call, channels)
            continue
        ids, axis = channels.ids, channels.axis
        for gone in sorted(axes, reverse=True):
            if varies(ids, gone):
                call.ties.tie(ids, settled(ids, gone), f"{call.name} sums them with others")
            ids = settled(ids, gone) if keep else ids.select(gone, 0)
            axis -= (not keep) and gone < axis
        found.append(Channels(ids, axis))
    return [tuple(found)] * len(call.outputs)


def _axes(call: Call, source: Tensor) -> list[int]:
    given = call["dim"]
    if given is None or (isinstance(given, Sequence) and not given):
        return list(range(source.dim()))
    return [axis % source.dim() for axis in (given if isinstance(given, Sequence) else [given])]


def _over(call: Call, channels: Channels) -> None:
    reason = f"{call.name} goes over them"
    if call.name in WHOLE:
        call.ties.hold_whole(channels.ids, f"{reason}{call.flow.where()}")
    else:
        call.hold([channels], reason, by_copies=call.name in OF_COPIES)


def spread(call: Call) -> list[Labels]:
    """Softmax and running sums: numbers along one axis see each other."""
    source = call["self"]
    axis = call["dim"] % source.dim()
    found: list[Channels] = []
    for channels in call.labels(source):
        if channels.axis == axis:
            call.hold([channels], f"{call.name} goes over them")
            continue
        if varies(channels.ids, axis):
            call.ties.tie_alike(channels.ids, settled(channels.ids, axis))
        found.append(channels.as_feature())
    return [tuple(found)] * len(call.outputs)
