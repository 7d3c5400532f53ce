"""One unit of an experiment: one arm, one rate, one seed, trained; it goes on after the last epoch that was written."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import Generator, Tensor, nn

from aimgraph.errors import ConfigError
from aimgraph.experiment.arms import Made, made
from aimgraph.experiment.augment import augmented
from aimgraph.experiment.costs import costs
from aimgraph.experiment.data import Parts, examples, is_stream, order_of
from aimgraph.experiment.images import Examples, Images
from aimgraph.experiment.probes import probed
from aimgraph.experiment.recipe import Recipe
from aimgraph.experiment.results import Result, Unit, result_of
from aimgraph.experiment.schedule import best_epoch, is_over, rate_at
from aimgraph.experiment.scores import check_fit, is_finite, loss_of, metric_of, new_metric
from aimgraph.experiment.watch import Watch
from aimgraph.reproducible import seeded

PROBED = 500
"""The most validation examples that a probe looks at."""

Told = Callable[[int], None]
"""Takes the number of epochs that are done."""


def run(recipe: Recipe, unit: Unit, folder: Path, told: Told = lambda _: None) -> Result:
    """Train a unit.

    Args:
        recipe: The experiment.
        unit: One of its units.
        folder: Where the state after each epoch is written, to go on from; the file is removed in the end.
        told: Called after each epoch.

    Raises:
        ConfigError: The arm has nothing to train, the outputs do not fit the labels, or the machine can't compute in
            the recipe's precision.
    """
    parts = examples(recipe.data, unit.seed)
    with seeded(unit.seed):
        arm = made(
            recipe, recipe.arms[unit.arm], unit.seed, parts.train.at(torch.arange(min(2, len(parts.train)))).pixels
        )
        trained = _Run(recipe, unit, arm, folder / f"{unit}.pt")
        return trained.done(parts, told)


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
        self.accelerator = _accelerator(recipe)
        self.learns = arm.learns
        self.watch = Watch(arm.memory)
        self.bare = arm.module.to(self.accelerator.device)
        self.start = {name: value.clone() for name, value in self.bare.state_dict().items()}
        self.module: nn.Module = self.bare
        self.optimiser: Any = None
        if self.learns:
            optimiser = _optimiser(recipe, unit.rate, list(self.learns.values()))
            self.module, self.optimiser = self.accelerator.prepare(self.bare, optimiser)
        self.best: dict[str, Tensor] = {}
        self.result = Result(
            unit,
            parameters=sum(parameter.numel() for parameter in self.bare.parameters()),
            trained=sum(parameter.numel() for parameter in self.learns.values()),
            added=arm.added,
            processes=self.accelerator.num_processes,
            device=self.accelerator.device.type,
            notes=list(arm.notes),
        )

    def done(self, parts: Parts, told: Told) -> Result:
        """Train, and measure."""
        self.result.metric = metric_of(parts.train.labels)
        if self.unit.tests and self.unit.seed == 0:
            self._costs(parts.train)
        self._load()
        while not self._ended():
            epoch = len(self.result.validation)
            started = time.perf_counter()
            self.result.loss.append(self._epoch(parts.train, epoch) if self.learns else math.nan)
            self.result.seconds.append(time.perf_counter() - started)
            self.result.validation.append(self._score(parts.validation))
            self._keep_best()
            self._save()
            told(epoch + 1)
        if self.best:
            self.result.best = best_epoch(self.result.validation)
            self._put(self.best)
        zero = self.recipe.arms[self.unit.arm].kind == "zero"  # whose reads nothing can move
        self.result.still = [] if zero else self.watch.still()
        if self.unit.tests:
            self._tested(parts)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.path.unlink(missing_ok=True)
        return self.result

    def _costs(self, train: Examples) -> None:
        batch = train.at(torch.arange(min(self.recipe.batch, len(train))))
        found = costs(self.bare, batch.pixels.to(self.accelerator.device))
        self.result.macs, self.result.kept_bytes = found.macs, found.kept_bytes
        self.result.notes += found.notes

    def _tested(self, parts: Parts) -> None:
        """Look at the test examples, and probe with those of the validation."""
        self.result.test = self._score(parts.test)
        if not self.recipe.probes:
            return
        some = parts.validation.at(torch.arange(min(PROBED, len(parts.validation))))

        def score(_: nn.Module, look: int | None = None, order: Tensor | None = None) -> float:
            return self._score(some if order is None else some.at(order), look)

        self.result.probes = probed(self.bare, some, score, self.start)

    def _ended(self) -> bool:
        epochs = len(self.result.validation)
        if epochs and not is_finite(self.learns):
            self.result.notes.append(f"its parameters were no numbers after epoch {epochs}")
            return True
        return epochs >= self.unit.epochs or is_over(self.recipe, self.result.validation)

    def _epoch(self, train: Examples, epoch: int) -> float:
        """One pass, in an order, and with dropout, that (seed, epoch) alone decide; the mean loss."""
        drawn = self.unit.seed * 100_003 + epoch
        set_seed(drawn)
        order = order_of(len(train), self.recipe.data, self.unit.seed, epoch, self.recipe.batch)
        generator = Generator().manual_seed(drawn)
        losses = []
        self.module.train()
        for number, index in enumerate(order):
            self._set_rate((epoch + number / len(order)) / self.unit.epochs)
            batch = augmented(train.at(index), self.recipe.augmentation, generator)
            losses.append(self._step(batch))
        return float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))

    def _step(self, whole: Images) -> Tensor:
        """Train on this process's part of a batch; the gradients are those of the mean over the whole one."""
        world = self.accelerator.num_processes
        batch = whole.at(torch.arange(self.accelerator.process_index, len(whole), world)) if world > 1 else whole
        if not len(batch):
            raise ConfigError(f"a batch of {len(whole)} examples can't be shared by {world} processes: raise batch")
        with self.accelerator.autocast():
            loss = loss_of(self._outputs(self.module, batch), batch.labels.to(self.accelerator.device))
        if world > 1:
            loss = loss * (len(batch) * world / len(whole))
        self.optimiser.zero_grad()
        self.accelerator.backward(loss)
        self.watch.step()
        self.optimiser.step()
        return loss.detach()

    def _set_rate(self, share: float) -> None:
        rate = rate_at(self.recipe, self.unit.rate, share, self.result.validation)
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def _score(self, images: Examples, look: int | None = None) -> float:
        """The score in eval mode; what a forward leaves in buffers is put back."""
        self.bare.eval()
        before = {name: one.clone() for name, one in self.bare.named_buffers()}
        metric: Any = None
        for index in self._shares(len(images), look or self.recipe.look):
            batch = images.at(index)
            with self.accelerator.autocast():
                outputs = self._outputs(self.bare, batch).float()
            labels = batch.labels.to(outputs.device)
            metric = new_metric(outputs, labels) if metric is None else metric
            metric.update(outputs, labels)
        for name, one in self.bare.named_buffers():
            one.copy_(before[name])
        return float(metric.compute()) if metric is not None else math.nan

    def _shares(self, count: int, look: int) -> list[Tensor]:
        """Which examples this process looks at, and together: all of a stream, otherwise its share."""
        world, place = self.accelerator.num_processes, self.accelerator.process_index
        whole = world == 1 or is_stream(self.recipe.data)
        first, last = (0, count) if whole else (place * count // world, (place + 1) * count // world)
        return list(torch.arange(first, last).split(look)) if last > first else []

    def _outputs(self, module: nn.Module, batch: Images) -> Tensor:
        outputs = module(batch.pixels.to(self.accelerator.device))
        return check_fit(outputs, batch.labels, self.recipe.model, self.recipe.data.name)

    def _moves(self) -> dict[str, Tensor]:
        """What training changes: trained parameters, and buffers."""
        return {name: one.detach() for name, one in self.learns.items()} | dict(self.bare.named_buffers())

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, one in self._moves().items():
                one.copy_(values[name])

    def _keep_best(self) -> None:
        if self.recipe.keep == "best" and best_epoch(self.result.validation) == len(self.result.validation) - 1:
            self.best = {name: value.clone() for name, value in self._moves().items()}

    def _save(self) -> None:
        """Write the state after an epoch, by one rename."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "module": self._moves(),
            "optimiser": self.optimiser.state_dict() if self.learns else {},
            "scaler": scaler.state_dict() if scaler is not None else {},
            "watch": sorted(self.watch.seen),
            "best": self.best,
            "result": self.result.to_dict(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".part")
        torch.save(state, draft)
        os.replace(draft, self.path)

    def _load(self) -> None:
        """Go on after the last epoch that was written by as many processes, if there is one."""
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        result = result_of(state["result"])
        if result.processes != self.result.processes:
            return
        self._put(state["module"])
        if self.learns:
            self.optimiser.load_state_dict(state["optimiser"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.watch.seen.update(state["watch"])
        self.best, self.result = state["best"], result


def _accelerator(recipe: Recipe) -> Accelerator:
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a memory may have reads that nothing uses
    cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    if cpu and recipe.precision == "fp16":  # accelerate would train in float32 and say nothing
        raise ConfigError('precision = "fp16" takes a GPU, and this machine has none: give "bf16" or "no"')
    try:
        return Accelerator(cpu=cpu, mixed_precision=recipe.precision, kwargs_handlers=[unused])
    except ValueError as error:
        raise ConfigError(f'precision = "{recipe.precision}": {error}') from error


def _optimiser(recipe: Recipe, rate: float, learns: list[nn.Parameter]) -> torch.optim.Optimizer:
    decay = recipe.weight_decay
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(learns, lr=rate, momentum=0.9, weight_decay=decay)
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(learns, lr=rate, weight_decay=decay)
