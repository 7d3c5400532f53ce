"""Bits of any number of values, in any dtype, whole or in pieces, say what the values said."""

import itertools

import pytest
import torch
from torch import Tensor

from aimgraph.runtime.lean import bits
from aimgraph.runtime.lean.bits import dense, packed, through_bits
from aimgraph.runtime.lean.step import Geometry

aten = torch.ops.aten
COUNTS = (1, 7, 8, 9, 63, 64, 65, 127, 130, 511, 513, 4099)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def as_they_are(values: Tensor) -> Tensor:
    return values


def aten_through(grad: Tensor, numbers: Tensor, above: float, out: Tensor | None) -> Tensor:
    assert out is not None
    return torch.mul(grad, numbers, out=out)


def masked(grad: Tensor, numbers: Tensor, above: float, out: Tensor | None) -> Tensor:
    """The gradient where a flag is set, elsewhere 0."""
    assert numbers.dtype == grad.dtype
    found: Tensor = torch.where(numbers > above, grad, 0)
    return found if out is None else out.copy_(found)


@pytest.mark.parametrize(("piece", "short"), [(64, 8), (64, 64), (1 << 18, 8), (1 << 18, 1 << 16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flag_comes_back(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, piece: int, short: int) -> None:
    monkeypatch.setattr(bits, "_PIECE", piece)
    monkeypatch.setattr(bits, "_SHORT", short)
    for count in COUNTS:
        y, grad = torch.randn(count).relu().to(dtype), torch.randn(count).to(dtype)
        grad[0] = float("inf")
        found = packed(y, as_they_are)
        assert found.dtype == torch.uint8
        assert found.numel() < count / 8 + 8
        assert torch.equal(through_bits(grad, found, Geometry.of(y), masked), aten.threshold_backward(grad, y, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_of_another_layout(dtype: torch.dtype) -> None:
    y = torch.randn(3, 5, 6, 7).relu().to(dtype, memory_format=torch.channels_last)
    grad = torch.randn(3, 5, 6, 7).to(dtype)
    assert dense(y) is y
    found = through_bits(grad, packed(y, as_they_are), Geometry.of(y), masked)
    assert torch.equal(found, aten.threshold_backward(grad, y, 0))


def test_the_smallest_flag_is_above_zero_where_small_numbers_are_flushed() -> None:
    """A set bit is a normal number, which a processor that takes the smallest ones as zero still tells from it."""
    y, grad = torch.ones(64), torch.randn(64)
    found = packed(y, as_they_are)
    flushed = torch.set_flush_denormal(True)
    try:
        assert torch.equal(through_bits(grad, found, Geometry.of(y), masked), grad) or not flushed
        half = grad.half()
        assert torch.equal(through_bits(half, found, Geometry.of(y.half()), masked), half) or not flushed
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_bytes(dtype: torch.dtype) -> None:
    """The number that a byte is made to be, and that a larger byte is a larger number."""
    words = torch.arange(256).to(bits._WORDS[dtype.itemsize]).bitwise_left_shift_(bits._LOWEST[dtype])
    numbers = [float(one) for one in words.view(dtype)]
    assert numbers[:255] == [bits._number(byte, dtype) for byte in range(255)]
    assert all(one < other for one, other in itertools.pairwise(numbers))
    smallest = 0.0 if dtype == torch.float16 else torch.finfo(dtype).smallest_normal  # halves are computed as floats
    assert numbers[1] >= smallest


@pytest.mark.parametrize("count", [0, 1, 63, 64, 200])
def test_a_few_values_on_another_device(count: int) -> None:
    y = torch.zeros(count, device="meta")
    assert through_bits(y, packed(y, as_they_are), Geometry.of(y), aten_through).shape == (count,)


def test_gaps_are_closed() -> None:
    y = torch.randn(4, 6)[:, ::2]
    assert dense(y).is_contiguous()
    assert torch.equal(dense(y), y)
