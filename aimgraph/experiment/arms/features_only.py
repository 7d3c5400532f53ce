"""Updates that see features and nothing of the memory.

    U(M, X)  ->  U(0, X);    gated: M <- g U(0, X) in place of (1 - g) M + g U(M, X)

Values of zero alone would not do: with several updates, a later block sees what an earlier one has written. Parameters
and initial weights are those of the block itself.
"""

import torch
from torch import Tensor

from aimgraph.runtime.parts import factory_of
from aimgraph.runtime.specs import BlockSpec, Factory
from aimgraph.runtime.updates.update import Update, update_of


class FeaturesOnly(Update):
    """An update that is given a memory of zeros, whatever the memory holds.

    Args:
        spec: Of the memory and the features.
        block: Makes what stands there otherwise, or its name.
    """

    def __init__(self, spec: BlockSpec, block: str | Factory) -> None:
        super().__init__()
        self.inner = update_of(factory_of("block", block), spec)

    def zero_(self) -> None:
        """Have the block leave zeros as they are, if it knows how."""
        hook = getattr(self.inner, "zero_", None)
        if callable(hook):
            hook()

    def forward(self, memory: Tensor, features: Tensor) -> Tensor:
        """What is written, from the features alone; see `Update`.

        Args:
            memory: [1, N] or [B, N]; its shape and type count.
            features: X.

        Returns:
            [B, N], or [1, N] with ``pool="batch"``.
        """
        return super().forward(torch.zeros_like(memory), features)

    def heads(self, memory: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the block gives for a memory of zeros."""
        return self.inner.heads(torch.zeros_like(memory), features)
