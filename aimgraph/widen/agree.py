"""Whether a widened model gives what the model gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.inputs.arguments import Arguments
from aimgraph.reproducible import seeded
from aimgraph.torch_private import tree_leaves, tree_map

TOLERANCE = 1e-10
"""How far outputs in float64 may be apart."""

TIMES = 100
"""How many times as far as those of the model itself, where its own forward rounds to fewer digits."""


@dataclass(frozen=True)
class Agreement:
    """How far outputs are apart, over their largest number.

    Attributes:
        apart: Of the model and the widened one.
        floor: Of the model itself, on inputs that differ by rounding; 0 where that was not needed.
        dtype: What was computed in, in words.
    """

    apart: float
    floor: float = 0.0
    dtype: str = "float64"

    @property
    def close(self) -> bool:
        """Whether they are the same but for rounding."""
        return self.apart <= max(TOLERANCE, TIMES * self.floor)

    def told(self) -> str:
        """In words."""
        floor = f"; those of the model itself, on inputs rounded otherwise, {self.floor:.1e}" if self.floor else ""
        return f"outputs in {self.dtype} are {self.apart:.1e} apart, over their largest number{floor}"


def agreement(
    model: nn.Module, widen: Callable[[nn.Module], nn.Module], inputs: Arguments, *, train: bool = False
) -> Agreement:
    """How far the outputs of a model and a widened one are apart.

    In float64 where the model runs in that. Some models round to fewer digits inside: then as far as that goes.

    Args:
        model: As it was.
        widen: Makes the widened one of it.
        inputs: Positional and keyword inputs.
        train: Whether they run in train mode, not in eval mode.
    """
    own = next((leaf.dtype for leaf in tree_leaves(inputs) if _is_float(leaf)), torch.float32)
    try:
        dtype = torch.float64
        before = _outputs(model, inputs, dtype, train)
    except Exception:  # whatever a model raises that names its own dtype
        dtype = own
        before = _outputs(model, inputs, dtype, train)
    after = _outputs(widen(_in(model, dtype)), inputs, dtype, train, copies=False)
    apart = _apart(before, after)
    name = str(dtype).removeprefix("torch.")
    if apart <= TOLERANCE:
        return Agreement(apart, dtype=name)
    nudge = 1 + 8 * torch.finfo(dtype).eps
    nudged = tree_map(lambda leaf: leaf.to(dtype) * nudge if _is_float(leaf) else leaf, inputs)
    return Agreement(apart, _apart(before, _outputs(model, nudged, dtype, train)), name)


def draws_in_training(model: nn.Module, inputs: Arguments) -> bool:
    """Whether a model gives something else in train mode with other random numbers: a widened one draws others."""
    first, second = (_outputs(model, inputs, None, True, seed) for seed in (0, 1))
    return _apart(first, second) > 0


def _in(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    copy = copy_module(module)
    return copy.double() if dtype == torch.float64 else copy


def _outputs(
    module: nn.Module,
    inputs: Arguments,
    dtype: torch.dtype | None,
    train: bool,
    seed: int = 0,
    *,
    copies: bool = True,
) -> list[Tensor]:
    with seeded(seed), torch.no_grad():
        args, kwargs = tree_map(lambda leaf: leaf.to(dtype) if _is_float(leaf) else leaf, inputs)
        result: Any = (_in(module, dtype) if copies else module).train(train)(*args, **kwargs)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _apart(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest difference over the largest number of each output; infinite where shapes differ."""
    if [one.shape for one in before] != [one.shape for one in after]:
        return float("inf")
    return max((_relative(one, other) for one, other in zip(before, after, strict=True)), default=0.0)


def _relative(one: Tensor, other: Tensor) -> float:
    if torch.equal(one, other) or not one.numel():
        return 0.0
    one, other = one.double(), other.double()
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    one, other = one[one.isfinite()], other[one.isfinite()]
    largest = float(one.abs().max()) if one.numel() else 0.0
    return float((one - other).abs().max()) / (largest or 1.0) if one.numel() else 0.0
