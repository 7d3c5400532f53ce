"""The batch of inputs: which dimension it is, and inputs at another batch size."""

import torch
from torch import Tensor

from aimgraph.errors import ExampleInputError
from aimgraph.inputs.arguments import Arguments, hidden_tensors
from aimgraph.reproducible import drawn_like
from aimgraph.torch_private import tree_leaves, tree_map_only


def with_rows(tensor: Tensor, rows: int) -> Tensor:
    """A tensor like `tensor`, [R, ...], with another number of rows.

    Floating point values are left unset, as nothing reads them. Other numbers are those given, repeated or cut: not
    every number is a valid length or index.
    """
    if tensor.is_floating_point() or tensor.is_complex() or not tensor.shape[0]:
        return tensor.new_empty((rows, *tensor.shape[1:]))
    return tensor[torch.arange(rows, device=tensor.device) % tensor.shape[0]]


def example_batch(inputs: Arguments) -> int:
    """The batch size that shapes are derived at: the example's, or 2 where that is 1.

    Batch normalisation may refuse a single sample in train mode.
    """
    return max(batch_size(inputs), 2)


def batch_size(inputs: Arguments) -> int:
    """Size of the first dimension of the first tensor input.

    Raises:
        ExampleInputError: No input is a tensor with at least one dimension.
    """
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.dim():
            return int(leaf.shape[0])
    raise ExampleInputError(
        "the example inputs hold no tensor with a batch dimension: give e.g. a [B, C, H, W] tensor"
        + hidden_tensors(inputs)
    )


def with_batch(inputs: Arguments, size: int, other: int) -> Arguments:
    """The inputs with `other` samples instead of `size`; see `with_rows` for their values."""

    def resize(leaf: Tensor) -> Tensor:
        return with_rows(leaf, other) if leaf.dim() and leaf.shape[0] == size else leaf

    made: Arguments = tree_map_only(Tensor, resize, inputs)
    return made


def input_shapes(inputs: Arguments) -> list[list[int]]:
    """Shapes of all tensors in `inputs`."""
    return [list(leaf.shape) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def random_inputs(inputs: Arguments, batch: int, seed: int, device: torch.device | str = "cpu") -> Arguments:
    """Inputs like `inputs` with `batch` samples: floating point drawn from N(0, 1), other numbers as given.

    Args:
        inputs: Example inputs. The numbers of lengths, indices and masks are repeated or cut; on the meta
            device, where there are none, they are zero.
        batch: Number of samples.
        seed: Seed of a private generator.
        device: Where the tensors live.
    """
    generator = torch.Generator().manual_seed(seed)
    size = batch_size(inputs)

    def draw(leaf: Tensor) -> Tensor:
        here = torch.zeros(leaf.shape, dtype=leaf.dtype, device=device) if leaf.is_meta else leaf.to(device)
        rows = batch if leaf.dim() and leaf.shape[0] == size else None
        if leaf.is_floating_point():
            return drawn_like(here, leaf.shape if rows is None else (rows, *leaf.shape[1:]), generator)
        return here.clone() if rows is None else with_rows(here, rows)

    made: Arguments = tree_map_only(Tensor, draw, inputs)
    return made
