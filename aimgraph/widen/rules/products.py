"""Sums over channels: convolutions, matrix products, attention, and what looks rows up."""

import torch
from torch import Tensor

from aimgraph.widen.flow import Call
from aimgraph.widen.labels import Channels, Labels, along, apart_from, line, on_axis, settled, varies
from aimgraph.widen.rules.pointwise import combined_labels

INPUT = "it reads numbers that can't grow"


def contract(call: Call, one: Labels, other: Labels, axes: tuple[int, int], sizes: tuple[int, int]) -> None:
    """Two tensors are summed over an axis each: channels of a weight follow those of the features.

    Args:
        call: The operation.
        one: The first tensor's labels.
        other: The second's.
        axes: Which axis of each.
        sizes: How long these are.
    """
    if min(sizes) < 2:
        return
    first, second = along(one, axes[0]), along(other, axes[1])
    if len(first) == len(second) == 1 and first[0].weight != second[0].weight:
        feature, weight = (second[0], first[0]) if first[0].weight else (first[0], second[0])
        _read(call, feature, weight)
        return
    reason = f"{call.name} sums over the products of two features" if first and second else INPUT
    call.hold((*first, *second), reason)


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
    """``mm``, ``bmm``, ``addmm``, ``baddbmm``, ``mv``, ``dot``: of the last axis of the one with the one before the other's last."""
    one, other = (call[name] for name in _FACTORS[call.name])
    rows = max(other.dim() - 2, 0)
    left, right = call.labels(one), call.labels(other)
    contract(call, left, right, (one.dim() - 1, rows), (one.shape[-1], other.shape[rows]))
    left, right = passed(call, left, one.dim() - 1), passed(call, right, rows)
    for side in (left, right):
        call.ties.made += [line(channels) for channels in side if channels.weight]
    shape = call.outputs[0].shape
    operands = [(_size(one, one.dim() - 1), left), (_size(other, rows), right)]
    operands = [_without_row(size, labels, tensor, shape) for (size, labels), tensor in zip(operands, (one, other), strict=True)]
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


def _size(tensor: Tensor, summed: int) -> list[int]:
    return [1 if axis == summed else size for axis, size in enumerate(tensor.shape)]


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
    if any(not one.weight for one in along(theirs, into)):
        call.hold((*along(mine, 1), *along(theirs, into)), "a weight that is computed reads them")
    elif groups == 1:
        contract(call, mine, theirs, (1, into), (x.shape[1], weight.shape[into]))
    found = [one for one in passed(call, mine, 1) if one.axis == 0]
    made = _grouped(call, mine, theirs, groups) if groups > 1 else _of_weight(call, theirs, out)
    shape = call.outputs[0].shape
    labels = tuple(Channels(on_axis(ids, 1, shape), 1) for ids in made)
    call.ties.made += [] if groups > 1 and weight.shape[into] == 1 and not call["transposed"] else made
    if isinstance(call["bias"], Tensor):
        sides = [([1, *shape[1:]], labels), (call["bias"].shape[:1] + (1,) * (len(shape) - 2), _lifted(call))]
        labels = combined_labels(call, sides, shape)
    return [(*(Channels(_widened(one.ids, shape), 0) for one in found), *labels)]


def _widened(ids: Tensor, shape: torch.Size) -> Tensor:
    for axis in range(1, ids.dim()):
        ids = settled(ids, axis)
    return ids.expand(tuple(shape))


def _lifted(call: Call) -> Labels:
    spatial = call.outputs[0].dim() - 2
    return tuple(Channels(one.ids[(..., *[None] * spatial)], 0) for one in call.labels(call["bias"]))


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
