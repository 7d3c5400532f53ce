"""Which of the examples are taken, and what is done to each of them when it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from aimgraph.experiment.images import ByteImages, Examples, Images, of_classes
from aimgraph.reproducible import generator_of

Change: TypeAlias = Callable[[Images], Images]

KEPT = 256 * 2**20
"""Bytes that a part of the examples may take as floats in memory; one that takes more is made batch by batch."""


@dataclass(frozen=True)
class Drawn:
    """Some of the examples, changed when they are asked for.

    Attributes:
        source: All of them.
        index: int64, [B]: which ones, in which order.
        changes: What is done to a batch of them, one after another.
    """

    source: Examples
    index: Tensor
    changes: tuple[Change, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def labels(self) -> Tensor:
        """Of those that were drawn."""
        return self.source.labels[self.index]

    def at(self, index: Tensor) -> Images:
        """Some of them, changed, in the order of `index`."""
        images = self.source.at(self.index[index])
        for change in self.changes:
            images = change(images)
        return images


def settled(drawn: Drawn) -> Examples:
    """The same in memory, if its source is there and it takes at most `KEPT` bytes."""
    if not isinstance(drawn.source, Images | ByteImages):
        return drawn
    size = drawn.at(torch.arange(1)).pixels.untyped_storage().nbytes() * len(drawn)
    return drawn.at(torch.arange(len(drawn))) if size <= KEPT else drawn


def in_rounds(order: Tensor, labels: Tensor) -> Tensor:
    """The same examples in rounds: each class, as long as it has some left, once a round.

    So whatever number of them is taken from the front, each class has as many as the others, give or take one, as far
    as there are examples. Within a class they keep their order.

    Args:
        order: int64, [B]: places of examples.
        labels: Of all examples. Unless they are one class for each, `order` is returned.
    """
    if not of_classes(labels):
        return order
    classes = labels[order]
    grouped = torch.argsort(classes, stable=True)
    _, sizes = torch.unique_consecutive(classes[grouped], return_counts=True)
    first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    turn = torch.empty_like(order)
    turn[grouped] = torch.arange(len(order)) - first
    return order[torch.argsort(turn, stable=True)]


def order_of_tests(labels: Tensor) -> Tensor:
    """The order in which test examples are taken: their own, or a fixed mixed one where classes lie in blocks."""
    changes = int((labels[1:] != labels[:-1]).sum()) if of_classes(labels) else -1
    if changes == len(labels.unique()) - 1:
        return torch.randperm(len(labels), generator=generator_of("the order of test examples"))
    return torch.arange(len(labels))
