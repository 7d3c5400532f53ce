"""Views, and all that puts numbers elsewhere without computing any: run on the channels themselves."""

from typing import Any

import torch
from torch import Tensor

from aimgraph.torch_private import tree_leaves, tree_map
from aimgraph.widen.flow import Call
from aimgraph.widen.labels import FIXED, Channels, Labels, along, positions, settled, varies


def move(call: Call) -> list[Labels]:
    """One tensor in, its numbers out in another order: what happens to channels is what happens to numbers."""
    source = next(tensor for tensor in call.tensors if call.labels(tensor))
    outputs: list[Labels] = [()] * len(call.outputs)
    for channels in call.labels(source):
        ids = _run(call, source, channels.ids)
        places = _run(call, source, positions(channels))
        if len(ids) > 1 and all(one.shape == ids[0].shape for one in ids):  # equal pieces stay equal
            _alike_pieces(call, ids)
        for number, (own, where) in enumerate(zip(ids, places, strict=True)):
            outputs[number] = (*outputs[number], *_placed(call, channels, own, where))
    return outputs


def _run(call: Call, source: Tensor, stand_in: Tensor) -> list[Tensor]:
    """What the operation gives for numbers that stand in for those of a tensor."""
    given = tree_map(lambda leaf: stand_in if leaf is source else leaf, call.given)
    if call.name in _RESHAPES:
        return [stand_in.reshape(call.outputs[0].shape)]
    if call.name in _COPIES:
        return [stand_in.expand(call.outputs[0].shape)]
    arguments = call.func._schema.arguments
    args = [given[one.name] for one in arguments if not one.kwarg_only]
    kwargs = {one.name: given[one.name] for one in arguments if one.kwarg_only and one.name not in _OF_NUMBERS}
    result: Any = call.func(*args, **kwargs)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


_RESHAPES = frozenset({"view", "_unsafe_view", "_reshape_alias", "reshape"})
_COPIES = frozenset(
    {"clone", "_to_copy", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy", "view_as", "zeros_like"}
) | {"ones_like", "empty_like", "full_like", "rand_like", "randn_like", "detach_", "_conj", "resolve_conj"}
_OF_NUMBERS = frozenset({"dtype", "layout", "device", "pin_memory", "memory_format"})


def _placed(call: Call, channels: Channels, ids: Tensor, places: Tensor) -> Labels:
    """The channels of an output, along the axis on which more of them would lie.

    An axis of channels that is split into several, as heads are, grows along the last; each of the others has as many.
    """
    axes = [axis for axis in range(ids.dim()) if varies(places, axis)]
    if not axes:
        if channels.ids.shape[channels.axis] > 1:
            call.hold([Channels(ids, 0)], f"{call.name} takes one of them out")
        return ()
    axis = axes[-1]
    for other in axes[:-1]:
        call.ties.tie_alike(ids, settled(ids, other))
    return (Channels(ids, axis, channels.weight),)


def _alike_pieces(call: Call, ids: list[Tensor]) -> None:
    for one in ids[1:]:
        call.ties.tie_alike(ids[0], one)


def join(call: Call) -> list[Labels]:
    """``cat``: side by side along one axis, the same along all others."""
    tensors = [tensor for tensor in call["tensors"] if tensor.dim() == call.outputs[0].dim() and tensor.numel()]
    axis = call["dim"] % call.outputs[0].dim()
    found: list[Channels] = []
    for other in range(call.outputs[0].dim()):
        rows = [along(call.labels(tensor), other) for tensor in tensors]
        if not any(rows):
            continue
        if any(len(row) > 1 for row in rows):
            for row in rows:
                call.hold(row, "several axes lie along the one that is joined")
            continue
        if other == axis:
            fixed = torch.full((), FIXED)
            parts = [row[0].ids if row else fixed.expand(one.shape) for row, one in zip(rows, tensors, strict=True)]
            found.append(Channels(_side_by_side(parts, axis).expand(call.outputs[0].shape), axis))
        else:
            found += _across(call, rows, other, axis)
    return [tuple(found)]


def _side_by_side(parts: list[Tensor], axis: int) -> Tensor:
    """The channels of tensors that are joined, of size 1 along axes on which none of them differ."""
    for other in range(parts[0].dim()):
        if other != axis and not any(varies(part, other) for part in parts):
            parts = [settled(part, other) for part in parts]
    return torch.cat(parts, axis)


def _across(call: Call, rows: list[Labels], axis: int, joined: int) -> Labels:
    """What lies side by side along one axis is the same channel along another."""
    present = [row[0] for row in rows if row and row[0].ids.shape[joined]]
    if len(present) < len([row for row in rows if row]) or len(present) < len(rows):
        call.hold(present, f"{call.name} joins them with others that can't grow")
        return ()
    if any(varies(one.ids, joined) for one in present):
        call.hold(present, f"{call.name} joins them along an axis that has others")
        return ()
    first = settled(present[0].ids, joined)
    for one in present[1:]:
        call.ties.tie(first, settled(one.ids, joined), f"{call.name} joins them with others that can't grow")
    return (Channels(first.expand(call.outputs[0].shape), axis),)


def stack(call: Call) -> list[Labels]:
    """``stack``: as ``cat`` along an axis that is new."""
    tensors, axis = call["tensors"], call["dim"] % call.outputs[0].dim()
    found: Labels = ()
    for other in range(tensors[0].dim()):
        rows = [[one for one in call.labels(tensor) if one.axis == other] for tensor in tensors]
        if not any(rows):
            continue
        if any(len(row) != 1 for row in rows):
            for row in rows:
                call.hold(row, "they are stacked with others that can't grow")
            continue
        ids = torch.stack([row[0].ids for row in rows], axis)
        call.ties.tie_alike(ids, settled(ids, axis))
        found = (*found, Channels(ids, other + (other >= axis)))
    return [found]


def stride(call: Call) -> list[Labels]:
    """``as_strided``: nothing is said of channels where the shape is another one."""
    labels = call.labels(call["self"])
    if call.outputs[0].shape == call["self"].shape:
        return [labels]
    call.hold(labels, f"{call.name} goes by their place in memory")
    return []


def halve(call: Call) -> list[Labels]:
    """``glu``: the first half of the channels along an axis, gated by the second."""
    source = call["self"]
    axis = call["dim"] % source.dim()
    size = source.shape[axis] // 2
    found: Labels = ()
    for channels in call.labels(source):
        halves = [channels.ids.narrow(axis, start, size) for start in (0, size)]
        call.ties.tie(halves[0], halves[1], f"{call.name} combines them with numbers that can't grow")
        found = (*found, Channels(halves[0], channels.axis))
    return [found]


def shuffle_pixels(call: Call) -> list[Labels]:
    """``pixel_shuffle``: several channels in a row become one, in a finer grid."""
    found: Labels = ()
    for channels in call.labels(call["self"]):
        ids = _run(call, call["self"], channels.ids)[0]
        if channels.axis != ids.dim() - 3:
            call.hold([channels], f"{call.name} puts them elsewhere")
            continue
        call.ties.tie_alike(ids, settled(settled(ids, -1), -2))
        found = (*found, Channels(ids, channels.axis))
    return [found]
