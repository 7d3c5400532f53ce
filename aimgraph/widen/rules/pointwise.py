"""Operations on each number by itself, or on numbers at the same place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aimgraph.widen.flow import Call
from aimgraph.widen.labels import Channels, Labels, varies


def combine(call: Call) -> list[Labels]:
    """Numbers that meet at one place belong to the same channel."""
    found = combined(call, call.tensors, call.outputs[0].shape)
    return [found] * len(call.outputs)


def combined(call: Call, tensors: Sequence[Tensor], shape: torch.Size) -> Labels:
    """What is known of the result of an operation on numbers at the same place of tensors that broadcast."""
    return combined_labels(call, [(one.shape, call.labels(one)) for one in tensors], shape)


def combined_labels(call: Call, operands: Sequence[tuple[Sequence[int], Labels]], shape: Sequence[int]) -> Labels:
    """The same for operands of which shape and labels are known."""
    found: list[Channels] = []
    for axis in range(len(shape)):
        rows = [_seen(labels, len(shape) - len(size), axis) for size, labels in operands]
        if not any(rows):
            continue
        filled = [_fills(size, len(shape), axis) for size, _ in operands]
        several = sum(filled) > 1
        if several and any(len(row) > 1 for row in rows):
            for row in rows:
                call.hold(row, "several axes lie along one that meets others")
            continue
        if any(full and not row for full, row in zip(filled, rows, strict=True)):
            for row in rows:
                call.hold(row, f"{call.name} combines them with numbers that can't grow")
            continue
        found += _met(call, rows, shape)
    return tuple(found)


def _seen(labels: Labels, ahead: int, axis: int) -> list[Channels]:
    """The labels of an operand along an axis of the result, which may have more axes ahead."""
    own = [one for one in labels if one.axis + ahead == axis]
    return [Channels(one.ids[(None,) * ahead], axis) for one in own]


def _fills(size: Sequence[int], dimensions: int, axis: int) -> bool:
    own = axis - (dimensions - len(size))
    return own >= 0 and size[own] > 1


def _met(call: Call, rows: list[list[Channels]], shape: Sequence[int]) -> list[Channels]:
    present = [row for row in rows if row]
    for row in present[1:]:
        call.ties.tie(present[0][0].ids, row[0].ids, f"{call.name} combines them with numbers that can't grow")
    # the operand that tells most apart goes on
    richest = max(present, key=lambda row: sum(varies(row[0].ids, axis) for axis in range(len(shape))))
    return [Channels(one.ids.expand(tuple(shape)), one.axis) for one in richest]
