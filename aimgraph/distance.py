"""How far outputs are from what they should be, `max|d|` and `max|d| / max|y|`, and which of them are no numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

LEAST = 1e-30
"""What `max|y|` is taken for where all of y is zero."""


def distance(given: Any, wanted: Any) -> tuple[float, float]:
    """`max|d|` and `max|d| / max|y|` of two tensors or arrays, `d = given - wanted` and `y = wanted`.

    Computed in double precision on the CPU. Where both hold not-a-number, or the same infinity, they don't differ;
    where only one does, the result is not-a-number or infinite. It is infinite for tensors of two shapes.
    """
    one, other = wide(given), wide(wanted)
    if one.shape != other.shape:
        return float("inf"), float("inf")
    same = (one == other) | (one.isnan() & other.isnan())
    sizes = other.abs()[other.isfinite()]
    gap = (one - other).abs().masked_fill(same, 0.0)
    largest = gap.max().item() if gap.numel() else 0.0
    return largest, largest / max(sizes.max().item() if sizes.numel() else 0.0, LEAST)


def farthest(given: Sequence[Any], wanted: Sequence[Any]) -> tuple[float, float]:
    """The largest of each `distance` over a list of outputs; infinite where there are more in one list."""
    if len(given) != len(wanted):
        return float("inf"), float("inf")
    return largest(map(distance, given, wanted))


def largest(distances: Any) -> tuple[float, float]:
    """The largest of each number in pairs; not-a-number if one is, (0, 0) of none."""
    gap, ratio = torch.tensor([(0.0, 0.0), *distances], dtype=torch.float64).max(dim=0).values.tolist()
    return gap, ratio


def not_numbers(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The tensors that hold not-a-number, in order: ``conv.weight (3 of 27 values)``.

    Tensors without values, and those of a class of its own, are not looked into.
    """
    found = []
    for name, tensor in named:
        if count := nan_count(tensor):
            found.append(f"{name} ({count:,} of {tensor.numel():,} values)")
    return found


def nan_count(tensor: Tensor) -> int:
    """How many values of a tensor are not-a-number; 0 where it has no values, or is of a class of its own."""
    plain = tensor.detach().data
    if type(plain) is not Tensor or plain.is_meta or not (plain.is_floating_point() or plain.is_complex()):
        return 0
    plain = dense(plain)
    return int((plain if plain.itemsize > 1 else plain.float()).isnan().sum())


def dense(tensor: Tensor) -> Tensor:
    """The same values in a dense tensor; sparse ones can't be compared, cut or written as they are."""
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def as_laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A dense tensor in the layout of another one: what `dense` was made of."""
    return tensor if like.layout is torch.strided else tensor.to(like.device).to_sparse(layout=like.layout)


def real_numbers(tensor: Tensor) -> Tensor:
    """Numbers to add up, both parts of complex ones."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor.float()


def wide(value: Any) -> Tensor:
    """A tensor or array on the CPU, dense and in double precision."""
    tensor = dense(torch.as_tensor(value).detach().cpu())
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
