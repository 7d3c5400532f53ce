"""Normalisation: by channel, or over channels."""

from torch import Tensor

from aimgraph.widen.flow import Call
from aimgraph.widen.labels import Channels, Labels, along
from aimgraph.widen.rules.pointwise import combined_labels

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


def by_channel(call: Call) -> list[Labels]:
    """Batch normalisation: each channel by itself."""
    x = call["input"]
    training = call["training"] if call["training"] is not None else call["train"]
    if training or (training is None and call["running_mean"] is None):
        call.hold([one for one in call.labels(x) if one.axis != 1], f"{call.name} goes over them")
    spatial = (1,) * (x.dim() - 2)
    sides = [(x.shape, call.labels(x))]
    for name in _PER_CHANNEL:
        if isinstance(call[name], Tensor):
            lifted = tuple(Channels(one.ids[(..., *[None] * len(spatial))], 0) for one in call.labels(call[name]))
            sides.append(((call[name].shape[0], *spatial), lifted))
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
    spatial = (1,) * (x.dim() - 2)
    sides = [(x.shape, labels)]
    for name in ("weight", "bias"):
        if isinstance(call[name], Tensor):
            lifted = tuple(Channels(one.ids[(..., *[None] * len(spatial))], 0) for one in call.labels(call[name]))
            sides.append(((call[name].shape[0], *spatial), lifted))
    return [_followed(call, sides)]


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
