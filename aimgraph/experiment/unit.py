"""One unit of an experiment: one arm, one rate, one seed, trained; it goes on after the last epoch that was written."""

import math
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from aimgraph.compiler.aim_paths import is_added
from aimgraph.errors import ConfigError
from aimgraph.experiment.arms import Made, made
from aimgraph.experiment.data import examples
from aimgraph.experiment.images import Images
from aimgraph.experiment.recipe import Recipe
from aimgraph.experiment.results import Result, Unit, result_of
from aimgraph.models_zoo.loader import import_torchvision
from aimgraph.reproducible import seeded


def run(recipe: Recipe, unit: Unit, folder: Path) -> Result:
    """Train a unit.

    Args:
        recipe: The experiment.
        unit: One of its units.
        folder: Where the state after each epoch is written, to go on from; the file is removed in the end.

    Raises:
        ConfigError: The arm has nothing to train, or the outputs do not fit the labels.
    """
    parts = examples(recipe.data)
    with seeded(unit.seed):
        arm = made(recipe, recipe.arms[unit.arm], unit.seed, parts.train.pixels[:2])
        return _Run(recipe, unit, arm, folder / f"{unit}.pt").done(parts.train, parts.validation, parts.test)


class _Run:
    """The training of a unit.

    Args:
        recipe: The experiment.
        unit: The unit.
        arm: Its module, and what is trained of it.
        path: Of the state after the last epoch.
    """

    def __init__(self, recipe: Recipe, unit: Unit, arm: Made, path: Path) -> None:
        self.recipe, self.unit, self.path = recipe, unit, path
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.before = {name: parameter.detach().clone() for name, parameter in arm.learns.items()}
        self.learns = arm.learns
        self.optimiser: Any = None
        self.module: nn.Module = arm.module
        if self.learns:
            self.module, self.optimiser = self.accelerator.prepare(arm.module, self._optimiser())
        self.result = Result(
            unit,
            trained=sum(parameter.numel() for parameter in self.learns.values()),
            added=arm.added,
            processes=self.accelerator.num_processes,
        )

    def done(self, train: Images, validation: Images, test: Images) -> Result:
        """Train, and measure."""
        self._load()
        for epoch in range(len(self.result.validation), self.unit.epochs):
            started = time.perf_counter()
            self.result.loss.append(self._epoch(train, epoch) if self.learns else math.nan)
            self.result.seconds.append(time.perf_counter() - started)
            self.result.validation.append(self._accuracy(validation))
            self._save()
        self.result.still = [name for name, value in self.before.items() if self._stood_still(name, value)]
        if self.unit.tests:
            self.result.test = self._accuracy(test)
        self.path.unlink(missing_ok=True)
        return self.result

    def _optimiser(self) -> torch.optim.Optimizer:
        if self.recipe.optimiser == "adam":
            return torch.optim.Adam(self.learns.values(), lr=self.unit.rate)
        return torch.optim.SGD(self.learns.values(), lr=self.unit.rate, momentum=0.9)

    def _epoch(self, images: Images, epoch: int) -> float:
        """One pass, in an order, and with dropout, that (seed, epoch) alone decide; the mean loss."""
        torch.manual_seed(self.unit.seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=Generator().manual_seed(self.unit.seed * 100_003 + epoch))
        starts = range(0, len(order) - self.recipe.batch + 1, self.recipe.batch)
        if not starts:
            raise ConfigError(f"batch = {self.recipe.batch}: there are {len(images)} examples to train on")
        losses = []
        self.module.train()
        for number, start in enumerate(starts):
            self._set_rate((epoch + number / len(starts)) / self.unit.epochs)
            batch = images.at(order[start : start + self.recipe.batch])
            losses.append(self._step(batch))
        return float(torch.stack(losses).mean())

    def _step(self, batch: Images) -> Tensor:
        device = self.accelerator.device
        logits, labels = self._logits(batch), batch.labels.to(device)
        loss = F.cross_entropy(logits, labels)
        self.optimiser.zero_grad()
        self.accelerator.backward(loss)
        self.optimiser.step()
        return loss.detach().cpu()

    def _set_rate(self, done: float) -> None:
        share = (1 + math.cos(math.pi * done)) / 2 if self.recipe.schedule == "cosine" else 1.0
        for group in self.optimiser.param_groups:
            group["lr"] = self.unit.rate * share

    @torch.no_grad()
    def _accuracy(self, images: Images) -> float:
        device = self.accelerator.device
        self.module.eval()
        metric: Any = None
        for start in range(0, len(images), _LOOK):
            batch = images.at(torch.arange(start, min(start + _LOOK, len(images))))
            logits = self._logits(batch)
            if metric is None:
                metric = _accuracy_of(logits.shape[1]).to(device)
            metric.update(logits, batch.labels.to(device))
        return float(metric.compute()) if metric is not None else math.nan

    def _logits(self, batch: Images) -> Tensor:
        """What the module gives, [B, classes].

        Raises:
            ConfigError: It has fewer classes than there are labels.
        """
        logits: Tensor = self.module(batch.pixels.to(self.accelerator.device))
        if logits.dim() != 2 or logits.shape[1] <= int(batch.labels.max()):
            raise ConfigError(
                f"{self.recipe.model} gives {list(logits.shape)}, and a label of {self.recipe.data.name} is "
                f"{int(batch.labels.max())}: give a model of as many classes as there are labels"
            )
        return logits

    def _stood_still(self, name: str, value: Tensor) -> bool:
        return is_added(name) and bool(torch.equal(value, self.learns[name].detach().cpu()))

    def _save(self) -> None:
        """Write the state after an epoch, by one rename."""
        state = {
            "module": self.accelerator.unwrap_model(self.module).state_dict(),
            "optimiser": self.optimiser.state_dict() if self.learns else {},
            "result": self.result.to_dict(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".part")
        torch.save(state, draft)
        os.replace(draft, self.path)

    def _load(self) -> None:
        """Go on after the last epoch that was written, if there is one."""
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.accelerator.unwrap_model(self.module).load_state_dict(state["module"])
        if self.learns:
            self.optimiser.load_state_dict(state["optimiser"])
        self.result = result_of(state["result"])


def _accuracy_of(classes: int) -> Any:
    if find_spec("torchvision"):
        import_torchvision()  # torchmetrics imports it
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(classes, average="micro")


_LOOK = 256
"""Examples that are measured at a time."""
