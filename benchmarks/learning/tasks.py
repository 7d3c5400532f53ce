"""Tasks on which memories are compared: a network, images, and how long to train."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from aimgraph.experiment.digits import digits
from aimgraph.experiment.idx import FASHION_FOLDER, idx_split
from aimgraph.experiment.images import Images, Split
from aimgraph.experiment.made import squares
from aimgraph.experiment.networks import digits_cnn, position_blind, small_resnet
from benchmarks.learning.networks import FirstLogits
from benchmarks.learning.train import Recipe, accuracy, fresh, shuffled, train

LITE0_SIDE = 64
"""Side of the images that EfficientNet-Lite0 is given."""

TEST_LITE0 = 500
"""Held-out images of the tasks on EfficientNet-Lite0."""

NOISE = 0.5
"""Deviation of the sensor's pattern; pixels are in [0, 1]."""


@dataclass(frozen=True)
class Problem:
    """What one seed of a task gives.

    Attributes:
        model: The network, without a memory.
        batches: Endless.
        test: Held-out images, the same for every seed but for a sensor's pattern.
    """

    model: nn.Module
    batches: Iterator[Images]
    test: Images


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        make: Makes the problem of a seed.
        recipe: How long to train.
        shape: Of the memory.
        frozen: Whether the network is frozen, so that the memory alone is trained.
        about: For the page: what is learned, from what, by which network.
        exclude: Layers that do not read.
    """

    make: Callable[[int], Problem]
    recipe: Recipe
    shape: tuple[int, ...] | Literal["auto"]
    frozen: bool
    about: str
    exclude: tuple[str, ...] = ()


def position(seed: int, recipe: Recipe) -> Problem:
    """Which of 16 cells holds the square, by a network that can't know."""
    torch.manual_seed(seed)
    batches = fresh(squares, recipe.batch, Generator().manual_seed(seed))
    return Problem(position_blind(), batches, squares(512, Generator().manual_seed(2**31)))


def noise(seed: int, recipe: Recipe) -> Problem:
    """Digits behind a sensor whose pixels are off by a fixed pattern, by a network that was trained without it."""
    pattern = NOISE * torch.randn(1, 1, 8, 8, generator=Generator().manual_seed(seed))
    split = unit_digits()
    train_, test = (Images(part.pixels + pattern, part.labels) for part in (split.train, split.test))
    return Problem(trained_digits_cnn(), shuffled(train_, recipe.batch, Generator().manual_seed(seed)), test)


def unit_digits() -> Split:
    """The digits with pixels in [0, 1]."""
    split = digits()
    return Split(*(Images((part.pixels + 1) / 2, part.labels) for part in (split.train, split.test)))


@cache
def trained_digits_cnn() -> nn.Module:
    """A network that tells digits apart, in eval mode."""
    torch.manual_seed(0)
    model, recipe = digits_cnn(), Recipe(steps=600)
    batches = shuffled(unit_digits().train, recipe.batch, Generator().manual_seed(0))
    train(model, model.parameters(), batches, lambda net: accuracy(net, unit_digits().test), recipe, 3e-3)
    return model.eval()


def from_scratch(seed: int, recipe: Recipe) -> Problem:
    """Digits, by a small residual network that is trained from its first step."""
    torch.manual_seed(seed)
    split = digits()
    batches = shuffled(split.train, recipe.batch, Generator().manual_seed(seed))
    return Problem(small_resnet(), batches, split.test)


def lite0_digits(seed: int, recipe: Recipe) -> Problem:
    """Digits, by a frozen EfficientNet-Lite0."""
    return _on_lite0(digits(), seed, recipe)


def lite0_fashion(seed: int, recipe: Recipe, folder: Path) -> Problem:
    """1,000 images of Fashion-MNIST, by a frozen EfficientNet-Lite0."""
    split = idx_split(folder)
    return _on_lite0(Split(split.train.at(torch.arange(1000)), split.test), seed, recipe)


def _on_lite0(split: Split, seed: int, recipe: Recipe) -> Problem:
    images, test = split.train, split.test.at(torch.arange(min(len(split.test), TEST_LITE0)))
    batches = shuffled(images, recipe.batch, Generator().manual_seed(seed))
    return Problem(_lite0(), map(_enlarged, batches), _enlarged(test))


def _enlarged(images: Images) -> Images:
    """In the size and with the channels that EfficientNet-Lite0 takes."""
    size = (LITE0_SIDE, LITE0_SIDE)
    large: Tensor = F.interpolate(images.pixels, size=size, mode="bilinear", align_corners=False)
    wide = large.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    return Images(wide, images.labels)


@cache
def _lite0() -> nn.Module:
    model = FirstLogits().eval()
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def tasks(fashion: Path = FASHION_FOLDER) -> dict[str, Task]:
    """All tasks, by name; the quick ones first.

    Args:
        fashion: Folder of Fashion-MNIST's files.
    """
    until = Recipe(steps=1500, batch=64, every=50, target=0.9, hopeless=(500, 0.1))
    sensor, scratch = Recipe(100, every=20), Recipe(185, every=37)
    brief = Recipe(40, every=40)
    return {
        "position": Task(
            lambda seed: position(seed, until), until, (16, 16, 2), False,
            "which of 16 cells holds a 2x2 square, position-blind network trained from scratch, its convolutions read",
            exclude=("8",),
        ),
        "head": Task(
            lambda seed: position(seed, until), until, (16, 16, 2), False,
            "which of 16 cells holds a 2x2 square, the same network, its linear layer reads, too: all 512 values",
        ),
        "sensor": Task(
            lambda seed: noise(seed, sensor), sensor, (8, 8, 2), True,
            "digits + one fixed pattern from N(0, 0.5^2), frozen small network",
        ),
        "scratch": Task(
            lambda seed: from_scratch(seed, scratch), scratch, (4, 4, 4), False,
            "digits, small ResNet trained from scratch for 5 epochs",
        ),
        "digits": Task(
            lambda seed: lite0_digits(seed, brief), brief, "auto", True,
            "digits at 64 px, frozen EfficientNet-Lite0, its first ten logits, 4 values",
        ),
        "wide": Task(
            lambda seed: lite0_digits(seed, brief), brief, (7, 7, 1), True,
            "digits at 64 px, frozen EfficientNet-Lite0, its first ten logits, 49 values",
        ),
        "fashion": Task(
            lambda seed: lite0_fashion(seed, brief, fashion), brief, "auto", True,
            "1,000 images of Fashion-MNIST at 64 px, frozen EfficientNet-Lite0, its first ten logits, 4 values",
        ),
    }  # fmt: skip
