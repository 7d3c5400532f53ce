"""Inputs like an example's, with numbers that a model takes: its own ones, or numbers that are drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.errors import ExampleInputError
from aimgraph.inputs.arguments import Arguments
from aimgraph.inputs.batch import batch_size, device_of, example_batch, input_shapes, random_inputs
from aimgraph.reproducible import has_numbers, seeded
from aimgraph.torch_private import tree_leaves
from aimgraph.user_code import told_error

R = TypeVar("R")

NUMBERS = 2**16
"""How many numbers are drawn for a further trial, of up to 64 samples: a few may be codes by chance."""


@dataclass(frozen=True)
class Samples:
    """Inputs like an example's, at any batch size.

    Attributes:
        inputs: The example, (args, kwargs).
        runs: Whether the model runs on the example's own floating-point numbers; there may be none.
        drawn: Whether it runs on numbers that are drawn.
        sizes: Two batch sizes that it takes.
        grad: Whether it runs with gradients recorded only.
    """

    inputs: Arguments
    runs: bool
    drawn: bool
    sizes: tuple[int, int] = (2, 3)
    grad: bool = False

    @property
    def own(self) -> bool:
        """Whether the example's own numbers are the only ones that the model takes, as where floats are codes."""
        return self.runs and not self.drawn

    def at(self, batch: int, seed: int, device: torch.device | str = "cpu", *, own: bool = False) -> Arguments:
        """Inputs with `batch` samples, as `random_inputs` makes them; of own numbers, where that is asked for, too."""
        return random_inputs(self.inputs, batch, seed, device, own=self.own or (own and self.runs))


def samples_for(
    module: nn.Module,
    inputs: Arguments,
    device: torch.device | str,
    sizes: tuple[int, int] = (2, 3),
    grad: bool = False,
) -> Samples:
    """Which numbers a module takes in place of the example's: its own are tried first.

    Numbers that are drawn are tried on the CPU: an index out of range ends all that a GPU could do for this process.

    Args:
        module: It is not changed; a copy runs in eval mode.
        inputs: The example.
        device: Where the module is.
        sizes: Two batch sizes that it takes.
        grad: Whether it runs with gradients recorded only.
    """
    first = sizes[0]
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not any(map(has_numbers, leaves)):
        return Samples(inputs, runs=False, drawn=True, sizes=sizes, grad=grad)
    copy = copy_module(module).eval()
    if not runs(copy, grad, random_inputs(inputs, first, first, device, own=True)):
        return Samples(inputs, runs=False, drawn=True, sizes=sizes, grad=grad)
    copy, more = copy.cpu(), min(64, NUMBERS * batch_size(inputs) // sum(leaf.numel() for leaf in leaves))
    drawn = runs(copy, grad, random_inputs(inputs, first, first))
    if drawn and more > first and not runs(copy, grad, random_inputs(inputs, more, first)):
        drawn = not runs(copy, grad, random_inputs(inputs, more, first, own=True))  # it may be the batch size
    return Samples(inputs, runs=True, drawn=drawn, sizes=sizes, grad=grad)


def first_that_runs(
    module: nn.Module,
    inputs: Arguments,
    run: Callable[[Samples], R],
    *,
    given: tuple[int, int] | None,
    usual: tuple[int, int],
    grad: bool = False,
) -> tuple[Samples, R]:
    """Inputs like an example's at two batch sizes that a module takes, and what `run` makes of them.

    Args:
        module: As for `samples_for`.
        inputs: The example. Edges number the nodes of a graph, so that its own size and the next may be the only ones.
        run: Runs the module on samples.
        given: The only pair of sizes, if there is one.
        usual: The first pair that is tried otherwise.
        grad: As for `samples_for`.

    Raises:
        ExampleInputError: It runs at none of the sizes.
    """
    own = example_batch(inputs)
    failed: dict[tuple[int, int], Exception] = {}
    for sizes in [given] if given else [usual, (own, own + 1), (own, 2 * own)]:
        samples = samples_for(module, inputs, device_of(module), sizes, grad)
        try:
            return samples, run(samples)
        except Exception as raised:  # whatever the model's own code raises
            failed[sizes] = raised
    first, error = next(iter(failed.items()))
    raise ExampleInputError(
        f"the model itself does not run on random inputs like the example's, of shapes {input_shapes(inputs)}, at "
        f"batch sizes {list(first)}: {told_error(error)}; give example inputs whose numbers it accepts, or "
        "aimgraph.transform(..., example_batches=...) batch sizes that it takes"
    ) from error


def runs(module: Callable[..., Any], grad: bool, sample: Arguments) -> bool:
    """Whether a module takes these inputs; with gradients recorded, if `grad`."""
    with seeded(), torch.set_grad_enabled(grad):
        try:
            module(*sample[0], **sample[1])
        except Exception:  # whatever a model raises for numbers that it does not take
            return False
    return True
