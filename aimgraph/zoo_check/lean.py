"""Does a frozen model whose forward keeps little give the outputs and gradients of one that keeps all?"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aimgraph.api.controls import freeze_base
from aimgraph.compiler.aim_paths import is_added
from aimgraph.copies import copy_module
from aimgraph.emit.module import AimModule

ROUNDING = 1e-6
"""Largest max|d| / max|g| of a gradient that a kernel other than torch's own has computed."""


def lean_problem(aim: AimModule, backward: Callable[[AimModule], bool], without: list[str]) -> str:
    """Compare the lean forward and backward pass of a frozen base with those that keep all.

    Args:
        aim: Reads something, with gradients at every part.
        backward: Adds the gradients of a number that every output has a part in; whether there are any.
        without: To be told what is equal up to rounding only.

    Returns:
        The first thing that is wrong; empty if nothing is.
    """
    found = []
    for lean in (False, True):
        module = freeze_base(copy_module(aim), lean=lean).train()
        if not backward(module):
            return ""  # nothing of the memory has a part in an output that requires a gradient
        found.append(_gradients(module))
    expected, seen = found
    if expected.keys() != seen.keys():
        return f"a frozen base, lean: gradients of {sorted(expected.keys() ^ seen.keys())[0]} on one side only"
    apart = {name: _distance(expected[name], seen[name]) for name in expected}
    worst = max(apart, key=lambda name: apart[name], default="")
    if worst and not apart[worst] <= ROUNDING:
        return f"a frozen base, lean: the gradient of {worst} differs by {apart[worst]:.2g} > {ROUNDING:g}"
    if worst and apart[worst] > 0:
        without.append(f"gradients of a frozen base, lean, to the bit: {apart[worst]:.1g}")
    return ""


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad for name, one in module.named_parameters() if is_added(name) and one.grad is not None}


def _distance(expected: Tensor, seen: Tensor) -> float:
    if torch.equal(expected, seen):
        return 0.0
    difference = (expected - seen).abs().max() / expected.abs().max()
    return float(difference.nan_to_num(nan=torch.inf))
