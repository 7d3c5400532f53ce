"""Reads at calls of ``F.conv2d``, ``F.linear`` and the like that no layer stands for."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.layer_kinds import FUNCTIONS


class FunctionRead(nn.Module):
    """f(.; Wm): the function that a forward calls, over k memory channels, in one group and without bias.

    Args:
        function: Its name in `torch.nn.functional`.
        weight: Wm, [O, k, ...], or [k, O, ...] for a transposed convolution.
        bounds: How a start draws it, to draw others like it; see `aimgraph.runtime.read_bounds.bounds_of`.
    """

    def __init__(self, function: str, weight: nn.Parameter, bounds: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.bounds = dict(bounds or {})
        self.function = function
        self.weight = weight

    def forward(self, memory: Tensor, **options: Any) -> Tensor:
        """The memory's term; `options` are the call's own stride, padding and so on."""
        weight = self.weight.to(memory.dtype)
        return torch.as_tensor(getattr(F, self.function)(memory, weight, None, **options))

    def serves(self, weight: Tensor, groups: int, *, grouped_batch: bool = False) -> bool:
        """Whether a call with this weight has the outputs and the kernel of this read.

        Args:
            weight: Of the features.
            groups: g.
            grouped_batch: Whether its outputs are those of all samples.
        """
        kind = FUNCTIONS[getattr(F, self.function)]
        outputs, own = kind.sizes(weight.shape, groups)[1], kind.sizes(self.weight.shape, 1)[1]
        fits = outputs % own == 0 if grouped_batch else outputs == own
        return fits and weight.shape[2:] == self.weight.shape[2:]

    def extra_repr(self) -> str:
        """The function and the shape of Wm."""
        return f"{self.function}, weight={list(self.weight.shape)}"


def group_batch(term: Tensor, like: Tensor) -> Tensor:
    """[B or 1, O, *S] -> [1, B * O, *S], as a convolution with one group per sample lays out its output.

    Args:
        term: The memory's term.
        like: The output that it is added to, with B * O channels on its axis -1 - rank(S).
    """
    axis = 1 - term.dim()
    samples = like.shape[axis] // term.shape[axis]
    return term.expand(samples, *term.shape[1:]).reshape(like.shape)
