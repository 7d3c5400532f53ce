"""One bit for each value of a tensor, in the order in which the values lie in memory.

The values are cut into eight stretches of one length, which share their bytes: bit i of byte j is the flag of value
``i * length + j``. So all stretches are packed with one product and one sum, and unpacked with one mask, on words of
any width. The last values, fewer than 64, are done in the same way apart from the others. Long stretches are worked
through in pieces, so that the flags of a piece stay in the processor's cache and take no memory to speak of.

A byte is made a number of the gradient's dtype by moving it below the sign, into the exponent: a larger byte is a
larger number. So the flags of the eighth stretch are set where the number is above that of 127. With these bits gone,
those of the seventh are set where it is above that of 63, and so on.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from aimgraph.runtime.lean.step import Geometry, is_written

Gradient: TypeAlias = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
"""Of the output's gradient, numbers of its dtype, the number that they are above where a flag is set, and where to
write the result, if that is given."""

_BITS = 8
"""Of a byte."""

_ROUND = 64
"""Values whose flags are whole words in each stretch."""

_PIECE = 1 << 18
"""Bytes of bits that are worked on at a time, for each thread."""

_SHORT = 1 << 16
"""Bytes that are few enough for one call on all stretches."""

_LOWEST = {torch.float16: 6, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}
"""Dtype -> places that a byte is moved by to be a finite number, or infinity."""

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> the integers that are as wide."""

_PLACES: dict[tuple[torch.dtype, int, torch.device], Tensor] = {}


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
    """The bits of a dense tensor, uint8: an eighth of its values, and up to seven more.

    Args:
        tensor: Any.
        flags: Of some of the values: booleans, or numbers that are 0 where no flag is set.
    """
    flat = _in_a_row(tensor)
    last = flat.numel() % _ROUND
    bits = torch.empty((flat.numel() + _ROUND - 1) // _ROUND * _BITS, dtype=torch.bool, device=tensor.device)
    for sums, values in _stretches(bits, flat):
        found = torch.empty(values.shape, dtype=torch.bool, device=tensor.device)
        _sum(found.copy_(flags(values)), sums)  # to booleans: faster than a comparison
    if last:
        found = torch.zeros(_ROUND, dtype=torch.bool, device=tensor.device)
        found[:last].copy_(flags(flat[-last:]))
        _sum(found.view(_BITS, -1), bits[-_BITS:])
    return bits.view(torch.uint8)


def _sum(found: Tensor, sums: Tensor) -> None:
    """Put flags [8, n], which are written over, into n bytes."""
    words = found.view(torch.int32)
    words.mul_(_places(torch.int32, 0, found.device))
    torch.sum(words, 0, dtype=torch.int32, out=sums.view(torch.int32))


def through_bits(grad: Tensor, bits: Tensor, like: Geometry, gradient: Gradient) -> Tensor:
    """What a function makes of a gradient and of flags that were packed.

    Args:
        grad: Of any layout.
        bits: Of a tensor of its shape.
        like: How that lay in memory.
        gradient: The function.
    """
    if not is_written(grad) or grad.stride() != like.stride:
        whole = torch.empty(like.shape.numel(), dtype=grad.dtype, device=bits.device)
        for some, out in _pieces(bits, whole):
            out.copy_(_flags(some, grad.dtype).view(-1)[: out.numel()].view(out.shape))
        return gradient(grad, whole.as_strided(like.shape, like.stride), 0.0, None)
    found = like.empty(grad.dtype)
    for some, given, out in _pieces(bits, _in_a_row(grad), _in_a_row(found)):
        if some.numel() <= _SHORT:
            numbers = _flags(some, grad.dtype).view(-1)[: out.numel()].view(out.shape)
            gradient(given, numbers, 0.0, out)
        else:
            _stretch_by_stretch(some, given, out, gradient)
    return found


def _stretch_by_stretch(bits: Tensor, grad: Tensor, out: Tensor, gradient: Gradient) -> None:
    """As `through_bits`, for n bytes and stretches [8, n]."""
    lowest = _LOWEST[grad.dtype]
    words = bits.to(_WORDS[grad.dtype.itemsize]).bitwise_left_shift_(lowest)
    numbers = words.view(grad.dtype)
    for i, given, written in reversed(list(zip(range(_BITS), grad.unbind(), out.unbind(), strict=True))):
        gradient(given, numbers, _number((1 << i) - 1, grad.dtype), written)
        words.bitwise_and_(((1 << i) - 1) << lowest)


@cache
def _number(byte: int, dtype: torch.dtype) -> float:
    """What a byte is made to be."""
    facts = torch.finfo(dtype)
    exponent, fraction = divmod(byte * 2.0 ** _LOWEST[dtype] * facts.eps, 1)
    return facts.smallest_normal * (fraction if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - 1))


def in_one_piece(count: int, device: torch.device) -> tuple[bool, bool]:
    """Whether so many values are worked on in stretches of an eighth each, and whether in one call for all of them."""
    length = count // _BITS
    one = not count % _ROUND and length <= _at_a_time(length, device)
    return one, one and length <= _SHORT


def _at_a_time(length: int, device: torch.device) -> int:
    """How many of so many bytes are worked on at a time."""
    return _PIECE * torch.get_num_threads() if device.type == "cpu" else length


def _in_a_row(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


def _pieces(bits: Tensor, *flat: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Bytes, and the values whose flags they hold: n of them, and stretches [8, n]; the last ones are as they are."""
    yield from _stretches(bits, *flat)
    if last := flat[0].numel() % _ROUND:
        yield bits[-_BITS:], *(one[-last:] for one in flat)


def _stretches(bits: Tensor, *flat: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """All but the last ones."""
    length = flat[0].numel() // _ROUND * _BITS
    if not length:
        return
    values = [one[: _BITS * length].view(_BITS, length) for one in flat]
    size = _at_a_time(length, bits.device)
    if length <= size:
        yield bits[:length], *values
        return
    for start in range(0, length, size):
        piece = slice(start, min(length, start + size))
        yield bits[piece], *(one[:, piece] for one in values)


def _flags(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Those of n bytes, [8, n], as numbers that are above 0 where one is set, else 0."""
    lowest = _LOWEST[dtype]
    words = bits.to(_WORDS[dtype.itemsize]).bitwise_left_shift_(lowest)
    return torch.bitwise_and(words, _places(words.dtype, lowest, bits.device)).view(dtype)


def _places(dtype: torch.dtype, lowest: int, device: torch.device) -> Tensor:
    """``2 ** (lowest + i)``, [8, 1]; made once for each device."""
    key = dtype, lowest, device
    if key in _PLACES:
        return _PLACES[key]
    made = torch.tensor([[1 << (lowest + i)] for i in range(_BITS)], dtype=dtype, device=device)
    if type(made) is Tensor and not made.is_inference():
        _PLACES[key] = made
    return made
