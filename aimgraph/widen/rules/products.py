"""Sums over channels: convolutions, matrix products, attention, and what looks rows up."""

import torch
from torch import Tensor

from aimgraph.widen.flow import Call
from aimgraph.widen.labels import Channels, Labels, along, apart_from, line, on_axis, per_channel, settled, varies
from aimgraph.widen.rules.pointwise import combined_labels

INPUT = "it reads numbers that can't grow"


def contract(call: Call, tensors: tuple[Tensor, Tensor], axes: tuple[int, int]) -> None:
    """Two tensors are summed over an axis each: channels of a weight follow those of the features.

    Args:
        call: The operation.
        tensors: The two.
        axes: Which axis of each.
    """
    sides = [along(call.labels(tensor), axis) for tensor, axis in zip(tensors, axes, strict=True)]
    if tensors[0].shape[axes[0]] < 2 or not any(sides):
        return
    weights = [call.is_weight(tensor) for tensor in tensors]
    one, other = sides
    if all(sides) and weights[0] == weights[1]:
        kind = "weights" if weights[0] else "features"
        call.hold((*one, *other), f"{call.name} sums over the products of two {kind}")
    elif max(map(len, sides)) > 1:
        call.hold((*one, *other), f"{call.name} sums over several axes at once")
    elif not all(sides):
        call.hold((*one, *other), INPUT)
    else:
        feature, weight = (other[0], one[0]) if weights[0] else (one[0], other[0])
        if weight.weight:
            _read(call, feature, weight)
        else:
            call.hold((feature, weight), f"{call.name} reads them with weights that are computed")


def _read(call: Call, feature: Channels, weight: Channels) -> None:
    """A weight's channels are those of the features, at every position of these."""
    own = line(weight)
    call.ties.tie(feature.ids, on_axis(own, feature.axis, feature.ids.shape), INPUT)
    call.ties.read.append(own)


def passed(call: Call, labels: Labels, axis: int) -> Labels:
    """The channels along all other axes, with the axis that is summed over taken to size 1."""
    found = []
    for one in apart_from(labels, [axis]):
        if varies(one.ids, axis):
            call.ties.tie(one.ids, settled(one.ids, axis), f"{call.name} sums them with others")
        found.append(Channels(settled(one.ids, axis), one.axis, one.weight))
    return tuple(found)


def matrices(call: Call) -> list[Labels]:
    """``mm``, ``bmm``, ``addmm``, ``mv``, ...: sums over the last axis of the one and the last but one of the other."""
    one, other = (call[name] for name in _FACTORS[call.name])
    rows = max(other.dim() - 2, 0)
    left, right = call.labels(one), call.labels(other)
    contract(call, (one, other), (one.dim() - 1, rows))
    left, right = passed(call, left, one.dim() - 1), passed(call, right, rows)
    if call.is_weight(one) != call.is_weight(other):
        call.ties.made += [line(channels) for channels in (left if call.is_weight(one) else right)]
    shape = call.outputs[0].shape
    operands = [(_with_ones(one, [one.dim() - 1]), left), (_with_ones(other, [rows]), right)]
    operands = [
        _without_row(size, labels, tensor, shape) for (size, labels), tensor in zip(operands, (one, other), strict=True)
    ]
    found = combined_labels(call, operands, shape)
    if call.name in ("addmm", "baddbmm", "addmv"):
        found = combined_labels(call, [(call["self"].shape, call.labels(call["self"])), (shape, found)], shape)
    return [found]


_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
    "dot": ("self", "tensor"),
}


def _without_row(size: list[int], labels: Labels, tensor: Tensor, shape: torch.Size) -> tuple[list[int], Labels]:
    """Of a vector, or beside one, the axis that is summed over is no axis of the result."""
    if len(size) == len(shape):
        return size, labels
    gone = len(size) - 1
    return size[:-1], tuple(Channels(one.ids.select(gone, 0), one.axis) for one in labels if one.axis != gone)


def convolve(call: Call) -> list[Labels]:
    """Channels on axis 1; a kernel's own axes are no one's channels."""
    x, weight, groups = call["input"], call["weight"], int(call["groups"])
    mine, theirs = call.labels(x), call.labels(weight)
    out, into = (1, 0) if call["transposed"] else (0, 1)
    call.hold([one for one in mine if one.axis > 1], f"{call.name} goes over them")
    if groups == 1:
        contract(call, (x, weight), (1, into))
    found = [one for one in passed(call, mine, 1) if one.axis == 0]
    made = _grouped(call, mine, theirs, groups) if groups > 1 else _of_weight(call, theirs, out)
    shape = call.outputs[0].shape
    labels = tuple(Channels(on_axis(ids, 1, shape), 1) for ids in made)
    call.ties.made += [] if groups > 1 and weight.shape[into] == 1 and not call["transposed"] else made
    if isinstance(call["bias"], Tensor):
        sides = [
            ([1, *shape[1:]], labels),
            (call["bias"].shape[:1] + (1,) * (len(shape) - 2), per_channel(call.labels(call["bias"]), len(shape))),
        ]
        labels = combined_labels(call, sides, shape)
    return [(*(Channels(_widened(one.ids, shape), 0) for one in found), *labels)]


def _widened(ids: Tensor, shape: torch.Size) -> Tensor:
    for axis in range(1, ids.dim()):
        ids = settled(ids, axis)
    return ids.expand(tuple(shape))


def _of_weight(call: Call, theirs: Labels, out: int) -> list[Tensor]:
    return [line(one) for one in along(theirs, out)]


def _grouped(call: Call, mine: Labels, theirs: Labels, groups: int) -> list[Tensor]:
    """The output channels of a convolution in groups: each group reads its part of the channels.

    A weight of one input channel a group (depthwise) has as many rows as there are channels; else each group has as
    many channels as the others, and the same copies of the k-th in each.
    """
    weight, features = call["weight"], along(mine, 1)
    rows = along(theirs, 0)
    if len(features) > 1 or len(rows) != 1:
        call.hold((*features, *theirs), "several axes lie along the channels")
        return []
    own = line(rows[0])
    if not features:
        call.hold(theirs, INPUT)
        return []
    if not rows[0].weight:
        call.hold((*features, *theirs), f"{call.name} reads them with weights that are computed")
        return [own]
    x = line(features[0])
    if features[0].ids.shape and varies(features[0].ids, 0):
        call.hold(features, "they differ from sample to sample")
    if call["transposed"]:
        return _transposed(call, x, own, theirs, groups)
    if weight.shape[1] == 1:
        call.ties.tie(x[:, None].expand(-1, len(own) // groups), own.reshape(groups, -1), INPUT)
        return [own]
    for inner in along(theirs, 1):
        columns = line(inner)
        call.ties.tie(x.reshape(groups, -1), columns[None].expand(groups, -1), INPUT)
        call.ties.read.append(columns)
    by_group = own.reshape(groups, -1)
    call.ties.tie_alike(by_group, by_group[:1])
    return [own]


def _transposed(call: Call, x: Tensor, own: Tensor, theirs: Labels, groups: int) -> list[Tensor]:
    call.ties.tie(x, own, INPUT)
    call.ties.read.append(own)
    by_group = x.reshape(groups, -1)
    if by_group.shape[1] > 1:
        call.ties.tie_alike(by_group, by_group[:1])
    else:
        call.hold(theirs, "a transposed convolution has a group for each channel")
    return [line(one).repeat(groups) for one in along(theirs, 1)]


def attend(call: Call) -> list[Labels]:
    """Attention: products of queries and keys are summed over; channels of the values go on."""
    query, key, value = call["query"], call["key"], call["value"]
    reason = f"{call.name} sums over the products of queries and keys"
    last = query.dim() - 1
    for tensor in (query, key):
        call.hold(along(call.labels(tensor), last), reason)
    for tensor in (key, value):
        call.hold(along(call.labels(tensor), last - 1), f"{call.name} goes over them")
    shape = call.outputs[0].shape
    if list(shape[:-1]) != list(query.shape[:-1]):
        for tensor in (query, key, value):
            call.hold(call.labels(tensor), f"{call.name} puts its axes elsewhere")
        return []
    sides = [
        (_with_ones(query, [last]), _ones(apart_from(call.labels(query), [last]), [last])),
        (_with_ones(key, [last, last - 1]), _ones(apart_from(call.labels(key), [last, last - 1]), [last, last - 1])),
        (_with_ones(value, [last - 1]), _ones(apart_from(call.labels(value), [last - 1]), [last - 1])),
    ]
    return [combined_labels(call, sides, shape)]


def _with_ones(tensor: Tensor, axes: list[int]) -> list[int]:
    return [1 if axis in axes else size for axis, size in enumerate(tensor.shape)]


def _ones(labels: Labels, axes: list[int]) -> Labels:
    found = []
    for one in labels:
        ids = one.ids
        for axis in axes:
            ids = settled(ids, axis)
        found.append(Channels(ids, one.axis))
    return tuple(found)


def look_up(call: Call) -> list[Labels]:
    """An embedding: rows are chosen, columns are channels."""
    shape = call.outputs[0].shape
    columns = [line(one) for one in along(call.labels(call["weight"]), 1)]
    call.ties.made += columns
    return [tuple(Channels(on_axis(ids, len(shape) - 1, shape), len(shape) - 1) for ids in columns)]


def by_rows(call: Call) -> list[Labels]:
    """Weight normalisation: each row, or what lies along another axis, by its own norm."""
    value, axis = call["v"], call["dim"] % call["v"].dim()
    others = apart_from(call.labels(value), [axis])
    call.hold(others, f"{call.name} divides by their norm")
    sides = [(tensor.shape, along(call.labels(tensor), axis)) for tensor in (value, call["g"])]
    return [(*combined_labels(call, sides, value.shape), *(one.as_feature() for one in others))]
