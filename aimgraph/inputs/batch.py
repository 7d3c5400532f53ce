"""The batch of inputs: which dimension it is, and inputs at another batch size."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aimgraph.errors import ExampleInputError
from aimgraph.inputs.arguments import Arguments, hidden_tensors
from aimgraph.reproducible import drawn_like, has_numbers, is_inexact
from aimgraph.torch_private import tree_leaves, tree_map_only


def with_rows(tensor: Tensor, rows: int) -> Tensor:
    """A tensor like `tensor`, [R, ...], with another number of rows: those given, repeated or cut.

    Not every number is a valid length, index or code.
    """
    if not tensor.shape[0]:
        return tensor.new_empty((rows, *tensor.shape[1:]))
    made = tensor.detach()[torch.arange(rows, device=tensor.device) % tensor.shape[0]]
    return made.requires_grad_(tensor.requires_grad)


@dataclass(frozen=True)
class Batches:
    """The two batch sizes that shapes are derived at.

    Attributes:
        first: The smaller one, as a rule that of the example.
        second: The other one.
    """

    first: int
    second: int

    def apart_from(self, others: set[int]) -> "Batches":
        """The next two, each one more or each doubled, of which neither is one of `others`."""
        found = self
        while others & {found.first, found.second}:
            if self.second == self.first + 1:
                found = Batches(found.first + 1, found.second + 1)
            else:
                found = Batches(2 * found.first, 2 * found.second)
        return found


def usual_batches(inputs: Arguments) -> Batches:
    """The batch size of the example and the next one."""
    return Batches(example_batch(inputs), example_batch(inputs) + 1)


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


def device_of(module: nn.Module) -> torch.device:
    """Where inputs of a module go: the device of its first parameter, the CPU for one without."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def input_shapes(inputs: Arguments) -> list[list[int]]:
    """Shapes of all tensors in `inputs`."""
    return [list(leaf.shape) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def random_inputs(
    inputs: Arguments, batch: int, seed: int, device: torch.device | str = "cpu", *, own: bool = False
) -> Arguments:
    """Inputs like `inputs` with `batch` samples: floating point is drawn from N(0, 1), other numbers are as given.

    Args:
        inputs: Example inputs. The numbers of lengths, indices and masks are repeated or cut; on the meta
            device, where there are none, they are zero.
        batch: Number of samples.
        seed: Seed of a private generator.
        device: Where the tensors live.
        own: Whether to take floating point as given, too, where it `has_numbers`; the seed decides with which sample
            the batch begins.
    """
    generator = torch.Generator().manual_seed(seed)
    size = batch_size(inputs)

    def draw(leaf: Tensor) -> Tensor:
        here = torch.zeros(leaf.shape, dtype=leaf.dtype, device=device) if leaf.is_meta else leaf.to(device)
        rows = batch if leaf.dim() and leaf.shape[0] == size else None
        if is_inexact(leaf) and not (own and has_numbers(leaf)):
            made = drawn_like(here, leaf.shape if rows is None else (rows, *leaf.shape[1:]), generator)
            return made.requires_grad_(leaf.requires_grad)
        if own and rows is not None and leaf.shape[0]:
            here = here.roll(-(seed % leaf.shape[0]), 0)
        return here.detach().clone().requires_grad_(leaf.requires_grad) if rows is None else with_rows(here, rows)

    made: Arguments = tree_map_only(Tensor, draw, inputs)
    return made
