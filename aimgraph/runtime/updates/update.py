"""How features are written into a memory during the forward pass: U(M, X)."""

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.errors import ConfigError
from aimgraph.reproducible import drawn_like, generator_of, kept_randomness
from aimgraph.runtime.finite import Writer, keep_finite, statistics_of
from aimgraph.runtime.specs import BlockSpec, Factory


class Update(Writer):
    """The memory after an update: `M <- U(M, X)`, or `M <- (1 - g) M + g U(M, X)` with a learned gate g.

    What its modules keep of the batches that they are trained with, as the running statistics of norms, stays as it was
    where a batch is not finite; see `aimgraph.runtime.finite`.

    Attributes:
        batch_axis: Dimension of X that carries the batch.
        channel_axis: Dimension of X that carries the channels.
        pool: ``None``: one memory per sample; ``"batch"``: their mean, [1, N].
        sizes: N, and [C, *S] of the features as planned.
    """

    batch_axis: int = 0
    channel_axis: int = 1
    pool: str | None = None
    sizes: tuple[int, tuple[int, ...]] = (0, ())

    def forward(self, memory: Tensor, features: Tensor) -> Tensor:
        """The memory after this update.

        Args:
            memory: [1, N] or [B, N].
            features: X, in the layout and rank it was planned for; the grid may differ.

        Returns:
            [B, N], or [1, N] with ``pool="batch"``.
        """
        x = features.movedim((self.batch_axis, self.channel_axis), (0, 1)).to(memory.dtype)
        before = statistics_of(self) if self.training else []
        new, gate = self.heads(memory, x)
        keep_finite(self, before)
        if gate is not None:
            new = memory + torch.sigmoid(gate) * (new - memory)
        return new.mean(0, keepdim=True) if self.pool == "batch" else new

    def heads(self, memory: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """New values, [B, N], and what the gate is the sigmoid of, or None.

        Args:
            memory: [1, N] or [B, N].
            features: [B, C, *S].
        """
        raise NotImplementedError

    def writes_zeros(self) -> bool:
        """Whether a memory of zeros stays zero whatever the features, in train and in eval mode."""
        (size, shape), like = self.sizes, next(self.parameters(), torch.empty(0))
        memory, features = like.new_zeros(2, size), drawn_like(like, (2, *shape), generator_of("features"))
        with torch.no_grad(), kept_randomness():
            for train in (True, False):
                written = copy_module(self).train(train).heads(memory, features)[0]
                if not written.is_meta and bool(written.any()):
                    return False
        return True


class BlockUpdate(Update):
    """An update by any module. Its gate is a second one of the same make.

    Args:
        block: Takes the memory, [B, N], and features, [B, C, *S], and gives new values, [B, N].
        gate: The same, or None.
    """

    def __init__(self, block: nn.Module, gate: nn.Module | None) -> None:
        super().__init__()
        self.block, self.gate = block, gate

    def zero_(self) -> None:
        """Have the block leave zeros as they are, if it knows how."""
        hook = getattr(self.block, "zero_", None)
        if callable(hook):
            hook()

    def heads(self, memory: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the modules give."""
        rows = memory.expand(features.shape[0], -1)
        return self.block(rows, features), None if self.gate is None else self.gate(rows, features)


def update_of(factory: Factory, spec: BlockSpec) -> Update:
    """The update that a block makes.

    Args:
        factory: Gives the block.
        spec: For it.

    Raises:
        ConfigError: It gives no module.
    """
    made = factory(spec)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"it gives a {type(made).__name__}; an update block is a torch.nn.Module")
    update = made if isinstance(made, Update) else BlockUpdate(made, factory(spec) if spec.gated else None)
    update.sizes = spec.size, (spec.features, *spec.grid)
    return update
