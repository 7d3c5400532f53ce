"""Whether a widened model gives what the model gives."""

from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.inputs.arguments import Arguments
from aimgraph.reproducible import seeded
from aimgraph.torch_private import tree_leaves, tree_map


def difference(model: nn.Module, widened: nn.Module, inputs: Arguments, *, train: bool = False) -> float:
    """The largest difference of the outputs over their largest number, in float64.

    Args:
        model: As it was.
        widened: The same with more channels.
        inputs: Positional and keyword inputs.
        train: Whether both run in train mode.

    Returns:
        Infinity where the outputs are not of the same shapes; over all outputs the largest one.
    """
    before, after = (_outputs(one, inputs, train) for one in (model, widened))
    if [one.shape for one in before] != [one.shape for one in after]:
        return float("inf")
    return max((_relative(one, other) for one, other in zip(before, after, strict=True)), default=0.0)


def _outputs(module: nn.Module, inputs: Arguments, train: bool) -> list[Tensor]:
    with seeded(), torch.no_grad():
        args, kwargs = tree_map(_doubled, inputs)
        result: Any = copy_module(module).double().train(train)(*args, **kwargs)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _relative(one: Tensor, other: Tensor) -> float:
    if torch.equal(one, other) or not one.numel():
        return 0.0
    largest = one.double().abs().max().item()
    return float((one.double() - other.double()).abs().max().item() / (largest or 1.0))
