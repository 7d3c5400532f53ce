"""One training run: Adam, constant rate, accuracy on held-out images at fixed steps."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from aimgraph.experiment.images import Images


@dataclass(frozen=True)
class Recipe:
    """How long to train, and when to look.

    Attributes:
        steps: The most steps.
        batch: Images in a step.
        every: Steps between two looks at the accuracy.
        target: Accuracy at which training stops; None to train for all steps.
        hopeless: A step, and an accuracy: a run that is below it then ends there; None to go on.
    """

    steps: int
    batch: int = 32
    every: int = 50
    target: float | None = None
    hopeless: tuple[int, float] | None = None

    def ends(self, step: int, accuracy: float) -> bool:
        """Whether a run with this accuracy ends at this step, before its last."""
        lost = self.hopeless is not None and step >= self.hopeless[0] and accuracy < self.hopeless[1]
        return lost or (self.target is not None and accuracy >= self.target)


@dataclass(frozen=True)
class Curve:
    """What a run gave.

    Attributes:
        steps: When the accuracy was measured.
        accuracy: What it was.
        reached: The first of these steps at which it was at least the target, or None.
    """

    steps: list[int]
    accuracy: list[float]
    reached: int | None


def train(
    model: nn.Module,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    batches: Iterator[Images],
    measure: Callable[[nn.Module], float],
    recipe: Recipe,
    rate: float,
) -> Curve:
    """Train `parameters` of `model` with Adam; a loss that is not finite ends the run.

    Args:
        model: Gives logits, [B, classes].
        parameters: What is trained; groups of parameters may have rates of their own.
        batches: Endless.
        measure: The accuracy of the model.
        recipe: How long.
        rate: Adam's learning rate.
    """
    optimiser = torch.optim.Adam(parameters, lr=rate)
    steps: list[int] = []
    accuracy: list[float] = []
    for step in range(1, recipe.steps + 1):
        images = next(batches)
        loss = F.cross_entropy(model(images.pixels), images.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        broken = not math.isfinite(loss.item())
        if step % recipe.every == 0 or step == recipe.steps or broken:
            steps.append(step)
            accuracy.append(measure(model))
            if broken or recipe.ends(step, accuracy[-1]):
                break
    reached = recipe.target is not None and accuracy[-1] >= recipe.target
    return Curve(steps, accuracy, steps[-1] if reached else None)


def shuffled(images: Images, batch: int, generator: Generator) -> Iterator[Images]:
    """Batches of images, epoch after epoch, each in an order of its own; what is left of an epoch is dropped."""
    while True:
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(order) - batch + 1, batch):
            yield images.at(order[start : start + batch])


def fresh(make: Callable[[int, Generator], Images], batch: int, generator: Generator) -> Iterator[Images]:
    """Batches of images that are made for it, no image twice."""
    while True:
        yield make(batch, generator)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, batch: int = 256) -> float:
    """Share of images whose label has the largest logit, in eval mode; the mode is put back."""
    training = model.training
    model.eval()
    right = 0
    for start in range(0, len(images), batch):
        logits: Tensor = model(images.pixels[start : start + batch])
        right += int((logits.argmax(1) == images.labels[start : start + batch]).sum())
    model.train(training)
    return right / len(images)
