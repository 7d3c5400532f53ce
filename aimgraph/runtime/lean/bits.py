"""One bit for each value of a tensor, in the order in which the values lie in memory.

Long tensors are worked through in pieces, so that the flags of a piece, a byte or a number each, stay in the
processor's cache and take no memory to speak of.
"""

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from aimgraph.runtime.lean.step import Geometry

Gradient: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of the output's gradient, flags as numbers, and where to write the input's, if that is given."""

_PLANES = 8
_WORD = 8
"""Flags in a word, one byte each."""

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
    """The bits of a dense tensor, int64 [ceil(n / 64)].

    Eight words of flags, which lie an eighth of the whole apart, go into one: word p is shifted by p, and no bit meets
    another.

    Args:
        tensor: Any.
        flags: Of values in a row: booleans, or numbers that are 0 where no flag is set.
    """
    flat, words = _in_a_row(tensor), _words(tensor.numel())
    found = torch.empty(words * _PLANES * _WORD, dtype=torch.bool, device=tensor.device)
    found[flat.numel() :].zero_()
    for piece in _pieces(flat):
        found[piece].copy_(flags(flat[piece]))  # to booleans: several times as fast as a comparison
    planes = found.view(torch.uint8).view(torch.int64).view(_PLANES, words)
    bits = planes[0].clone()
    for place in range(1, _PLANES):
        bits.bitwise_or_(planes[place] << place)
    return bits


def through_bits(grad: Tensor, bits: Tensor, like: Geometry, gradient: Gradient) -> Tensor:
    """What a function makes of a gradient and of flags that were packed.

    Args:
        grad: Of any layout.
        bits: Of a tensor of its shape.
        like: How that lay in memory.
        gradient: The function.
    """
    flags = _unpacked(bits)
    if grad.stride() != like.stride:
        return gradient(grad, flags.as_strided(like.shape, like.stride).to(grad.dtype), None)
    found = like.empty(grad.dtype)
    given, out = _in_a_row(grad), _in_a_row(found)
    for piece in _pieces(given):
        gradient(given[piece], flags[piece].to(grad.dtype), out[piece])
    return found


def _in_a_row(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


def _words(count: int) -> int:
    return math.ceil(count / (_PLANES * _WORD))


def _pieces(flat: Tensor) -> Iterator[slice]:
    count = flat.numel()
    size = _PIECE * torch.get_num_threads() if flat.device.type == "cpu" else max(1, count)
    return (slice(start, min(count, start + size)) for start in range(0, count, size))


def _unpacked(bits: Tensor) -> Tensor:
    """The flags, a byte each, with up to 63 more behind them."""
    planes = torch.empty((_PLANES, bits.numel()), dtype=torch.int64, device=bits.device)
    for place in range(_PLANES):
        torch.bitwise_right_shift(bits, place, out=planes[place])
    return planes.bitwise_and_(0x0101010101010101).view(-1).view(torch.uint8)
