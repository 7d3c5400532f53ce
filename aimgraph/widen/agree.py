"""Whether a widened model gives what the model gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.distance import farthest
from aimgraph.inputs.arguments import Arguments, tensors_in
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
    apart = farthest(after, before)[1]
    name = str(dtype).removeprefix("torch.")
    if apart <= TOLERANCE:
        return Agreement(apart, dtype=name)
    nudge = 1 + 8 * torch.finfo(dtype).eps
    nudged = tree_map(lambda leaf: leaf.to(dtype) * nudge if _is_float(leaf) else leaf, inputs)
    return Agreement(apart, farthest(_outputs(model, nudged, dtype, train), before)[1], name)


def draws_in_training(model: nn.Module, inputs: Arguments) -> bool:
    """Whether a model gives something else in train mode with other random numbers: a widened one draws others."""
    first, second = (_outputs(model, inputs, None, True, seed) for seed in (0, 1))
    return farthest(second, first)[1] > 0


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
    return tensors_in(result)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
