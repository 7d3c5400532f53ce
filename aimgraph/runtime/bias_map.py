"""What a memory that never changes comes down to: a number at every place of a layer's output."""

import torch
from torch import Tensor, nn

from aimgraph.errors import ExampleInputError
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.function_read import group_batch


class BiasMap(nn.Module):
    """``y + map``, with what a layer read of a static memory as a map.

    Args:
        value: m, of the shape of the layer's output with one sample.
        sites: The layers that have read it.
        batch_axis: Dimension of the output that carries the batch, or None.
        grouped_batch: Whether the output has all samples side by side in its channels.
    """

    def __init__(
        self, value: Tensor, sites: tuple[str, ...], batch_axis: int | None, *, grouped_batch: bool = False
    ) -> None:
        super().__init__()
        self.sites, self.batch_axis, self.grouped_batch = sites, batch_axis, grouped_batch
        self.value: Tensor
        self.register_buffer("value", value)

    @classmethod
    def merged(cls, one: "BiasMap", other: "BiasMap") -> "BiasMap":
        """The sum of two maps that are added to the same output."""
        sites = tuple(dict.fromkeys((*one.sites, *other.sites)))
        return cls(one.value + other.value, sites, one.batch_axis)

    def is_same(self, other: "BiasMap") -> bool:
        """Whether the other adds the same numbers in the same way."""
        same = (self.batch_axis, self.grouped_batch) == (other.batch_axis, other.grouped_batch)
        return same and torch.equal(self.value, other.value)

    def forward(self, output: Tensor) -> Tensor:
        """The layer's output with the map.

        Raises:
            ExampleInputError: The output has another size than the map.
        """
        term = self.value
        if self.grouped_batch:
            return accumulate(output, group_batch(term, output))
        if output.dim() != term.dim() or any(
            have != want
            for axis, (have, want) in enumerate(zip(output.shape, term.shape, strict=True))
            if axis != self.batch_axis
        ):
            raise ExampleInputError(
                f"{', '.join(self.sites)}: memory was folded into a map of shape {list(term.shape)}, and the output is "
                f"{list(output.shape)}: for inputs of another size fold again, aimgraph.fold(aim, example_inputs)"
            )
        return accumulate(output, term)

    def extra_repr(self) -> str:
        """The layer and the map's shape."""
        return f"{', '.join(self.sites)}, {list(self.value.shape)}"


def constant_over_grid(value: Tensor, channel_axis: int) -> Tensor | None:
    """The one number per channel that a map has everywhere; None if it has others.

    Args:
        value: The map.
        channel_axis: Dimension of its channels.
    """
    rows = value.movedim(channel_axis, 0).flatten(1)
    same = bool(torch.equal(rows, rows[:, :1].expand_as(rows)))
    return rows[:, 0].clone() if same else None
