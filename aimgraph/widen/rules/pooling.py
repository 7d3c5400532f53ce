"""Operators on windows: pooling, interpolation, padding, pixel shuffle, and picking by index."""

import re

import torch
from torch import Tensor

from aimgraph.torch_private import tree_map
from aimgraph.widen.flow import Call
from aimgraph.widen.labels import FIXED, Channels, Labels, along, positions, settled, varies


def over_windows(call: Call) -> list[Labels]:
    """Over the last one, two or three axes, as the operator's name says; the axes before them stay."""
    source = call["self"] if isinstance(call["self"], Tensor) else call["input"]
    spatial = int(found[1]) if (found := re.search(r"([123])d", call.name)) else source.dim() - 2
    first = source.dim() - spatial
    found_: list[list[Channels]] = [[] for _ in call.outputs]
    for channels in call.labels(source):
        ids = channels.ids
        if channels.axis >= first or any(varies(ids, axis) for axis in range(first, source.dim())):
            call.hold([channels], f"{call.name} goes over them")
            continue
        for axis in range(first, source.dim()):
            ids = settled(ids, axis)
        for place, output in zip(found_, call.outputs, strict=True):
            if output.dim() == source.dim() and output.shape[:first] == source.shape[:first]:
                place.append(Channels(ids.expand(tuple(output.shape)), channels.axis))
    return [tuple(one) for one in found_]


def pad(call: Call) -> list[Labels]:
    """Constants around: along other axes they are the same for all copies, beside channels they can't grow."""
    source, shape = call["self"], call.outputs[0].shape
    given = list(call["pad"])
    around = {source.dim() - 1 - i // 2: given[i : i + 2] for i in range(0, len(given), 2)}
    found: Labels = ()
    for channels in call.labels(source):
        ids = channels.ids
        others = [axis for axis in around if axis != channels.axis]
        if any(varies(ids, axis) for axis in others):
            call.hold([channels], f"{call.name} puts constants beside them")
            continue
        for axis in others:
            ids = settled(ids, axis)
        if channels.axis in around:
            behind = [0, 0] * (source.dim() - 1 - channels.axis)
            ids = torch.constant_pad_nd(ids, [*behind, *around[channels.axis]], FIXED)
        found = (*found, Channels(ids.expand(shape), channels.axis))
    return [found]


def pick(call: Call) -> list[Labels]:
    """``index`` and its like: where numbers are chosen along an axis, its channels can't grow; others go on."""
    source = call["self"]
    indices = (
        call["indices"] if call["indices"] is not None else [None] * (call["dim"] % source.dim()) + [call["index"]]
    )
    chosen = {axis for axis, index in enumerate(indices) if index is not None}
    if any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices):
        for tensor in call.tensors:
            call.hold(call.labels(tensor), f"{call.name} chooses by a mask")
        return []
    found: Labels = ()
    for channels in call.labels(source):
        if channels.axis in chosen:
            call.hold([channels], f"{call.name} chooses among them")
            continue
        zeros = tree_map(
            lambda leaf: torch.zeros(leaf.shape, dtype=torch.int64) if isinstance(leaf, Tensor) else leaf, indices
        )
        ids = _at(channels.ids, zeros, chosen)
        places = _at(positions(channels), zeros, chosen)
        axes = [axis for axis in range(places.dim()) if varies(places, axis)]
        if ids.shape != call.outputs[0].shape or len(axes) != 1:
            call.hold([channels], f"{call.name} chooses beside them")
            continue
        found = (*found, Channels(ids, axes[0]))
    return [found]


def _at(ids: Tensor, indices: list[Tensor | None], chosen: set[int]) -> Tensor:
    return torch.ops.aten.index(ids, indices) if chosen else ids


def take_rows(call: Call) -> list[Labels]:
    """``index_select``: along one axis, by a vector."""
    source, axis = call["self"], call["dim"] % call["self"].dim()
    call.hold(along(call.labels(source), axis), f"{call.name} chooses among them")
    found = []
    for one in call.labels(source):
        if one.axis != axis:
            size = [call.outputs[0].shape[axis] if number == axis else n for number, n in enumerate(one.ids.shape)]
            found.append(Channels(settled(one.ids, axis).expand(size), one.axis))
    return [tuple(found)]


def drop(call: Call) -> list[Labels]:
    """Dropout: the numbers, and which ones stay."""
    source = call["input"] if isinstance(call["input"], Tensor) else call["self"]
    return [tuple(one.as_feature() for one in call.labels(source))] * len(call.outputs)


def forget(call: Call) -> list[Labels]:
    """A tensor that takes no numbers and no sizes from another one, but dtype and device only."""
    return []
