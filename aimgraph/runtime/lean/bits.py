"""One bit for each value of a tensor, in the order in which the values lie in memory.

Long tensors are worked through in pieces, so that the flags of a piece, a byte or a number each, stay in the
processor's cache and take no memory to speak of.
"""

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from aimgraph.runtime.lean.step import Geometry, is_written

Gradient: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of the output's gradient, numbers from 0 to 128 that are 0 where no flag is set, and where to write the result, if
that is given."""

_WORD = 8
"""Flags in a word, one byte each."""

_TOGETHER = 0x0102040810204080
"""A word of flags times this has flag i as bit i of its highest byte: byte k of it moves flag 7 - k there."""

_PLACES = 0x8040201008040201 - (1 << 64)
"""Byte i holds bit i."""

_EVERYWHERE = 0x0101010101010101
"""Times a byte: a word that holds it eight times."""

_PIECE = 1 << 18
"""Values of a piece for each thread."""


def dense(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy of it that has no gaps and nothing twice in memory."""
    return tensor if _is_dense(tensor) else tensor.contiguous()


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def packed(tensor: Tensor, flags: Callable[[Tensor], Tensor]) -> Tensor:
    """The bits of a dense tensor, uint8 [ceil(n / 8)].

    Args:
        tensor: Any.
        flags: Of values in a row: booleans, or numbers that are 0 where no flag is set.
    """
    flat = _in_a_row(tensor)
    found = torch.empty(math.ceil(flat.numel() / _WORD) * _WORD, dtype=torch.bool, device=tensor.device)
    found[flat.numel() :].zero_()
    for piece in _pieces(flat):
        found[piece].copy_(flags(flat[piece]))  # to booleans: faster than a comparison
    return found.view(torch.int64).mul(_TOGETHER).bitwise_right_shift_(56).to(torch.uint8)


def through_bits(grad: Tensor, bits: Tensor, like: Geometry, gradient: Gradient) -> Tensor:
    """What a function makes of a gradient and of flags that were packed.

    Args:
        grad: Of any layout.
        bits: Of a tensor of its shape.
        like: How that lay in memory.
        gradient: The function.
    """
    flags = _unpacked(bits)
    if not is_written(grad) or grad.stride() != like.stride:
        return gradient(grad, flags.as_strided(like.shape, like.stride).to(grad.dtype), None)
    found = like.empty(grad.dtype)
    given, out = _in_a_row(grad), _in_a_row(found)
    for piece in _pieces(given):
        gradient(given[piece], flags[piece].to(grad.dtype), out[piece])
    return found


def _in_a_row(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


def _pieces(flat: Tensor) -> Iterator[slice]:
    count = flat.numel()
    size = _PIECE * torch.get_num_threads() if flat.device.type == "cpu" else max(1, count)
    return (slice(start, min(count, start + size)) for start in range(0, count, size))


def _unpacked(bits: Tensor) -> Tensor:
    """Above 0 where a flag is set, else 0, a byte each, with up to seven more behind them."""
    return bits.to(torch.int64).mul_(_EVERYWHERE).bitwise_and_(_PLACES).view(torch.uint8)
