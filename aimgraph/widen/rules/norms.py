"""Normalisation: by channel, or over channels."""

from collections.abc import Sequence

from torch import Tensor

from aimgraph.widen.flow import Call
from aimgraph.widen.labels import Channels, Labels, along, per_channel
from aimgraph.widen.rules.pointwise import combined_labels

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


def by_channel(call: Call) -> list[Labels]:
    """Batch normalisation: each channel by itself."""
    x = call["input"]
    training = call["training"] if call["training"] is not None else call["train"]
    if training or (training is None and call["running_mean"] is None):
        call.hold([one for one in call.labels(x) if one.axis != 1], f"{call.name} goes over them")
    sides = [(x.shape, call.labels(x)), *_scales(call, _PER_CHANNEL)]
    if not along(call.labels(x), 1):
        return [call.labels(x)]
    return [combined_labels(call, sides, x.shape)]


def over_axes(call: Call) -> list[Labels]:
    """Layer and RMS normalisation: over the last axes."""
    x = call["input"]
    ahead = x.dim() - len(call["normalized_shape"])
    _whole(call, [one for one in call.labels(x) if one.axis >= ahead])
    sides = [(x.shape, call.labels(x))]
    sides += [
        (call[name].shape, call.labels(call[name])) for name in ("weight", "bias") if isinstance(call[name], Tensor)
    ]
    return [_followed(call, sides)]


def over_groups(call: Call) -> list[Labels]:
    """Group normalisation: over the channels of each group, which have all to be copied as often."""
    x, groups = call["input"], int(call["group"])
    labels = call.labels(x)
    call.hold([one for one in labels if one.axis > 1], f"{call.name} goes over them")
    channels = along(labels, 1)
    if groups == x.shape[1]:
        call.hold(channels, f"{call.name} has a group for each")
    else:
        _whole(call, channels)
    sides = [(x.shape, labels), *_scales(call, ("weight", "bias"))]
    return [_followed(call, sides)]


def _scales(call: Call, names: Sequence[str]) -> list[tuple[tuple[int, ...], Labels]]:
    """Size and labels of what a norm has for each channel, as they meet the features."""
    dimensions = call["input"].dim()
    given = [call[name] for name in names if isinstance(call[name], Tensor)]
    ones = (1,) * (dimensions - 2)
    return [((one.shape[0], *ones), per_channel(call.labels(one), dimensions)) for one in given]


def _whole(call: Call, labels: list[Channels] | Labels) -> None:
    for one in labels:
        call.ties.hold_whole(one.ids, f"{call.name} averages over them{call.flow.where()}")


def _followed(call: Call, sides: list[tuple[tuple[int, ...], Labels]]) -> Labels:
    """As of numbers at the same place, but that scales follow features, never the other way round."""
    mine = sides[0][1]
    shape, dimensions = sides[0][0], len(sides[0][0])
    kept = [sides[0]]
    for size, labels in sides[1:]:
        ahead = dimensions - len(size)
        kept.append((size, tuple(one for one in labels if along(mine, one.axis + ahead))))
    return combined_labels(call, [(size, labels) for size, labels in kept if labels], shape) if mine else ()
