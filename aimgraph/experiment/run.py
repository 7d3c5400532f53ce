"""Runs an experiment: rates are chosen by validation, then each arm is trained with every seed and tested once."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Protocol

from filelock import FileLock, Timeout

from aimgraph.errors import ConfigError
from aimgraph.experiment.analysis import analysed
from aimgraph.experiment.recipe import Recipe
from aimgraph.experiment.results import ArmFacts, Experiment, Lost, Result, Unit, result_of
from aimgraph.experiment.work import FAILED, JOB, Task
from aimgraph.units.code import code_digest, own_code, versions
from aimgraph.units.journal import Journal
from aimgraph.units.remote import run_remote
from aimgraph.units.runner import Limits, Outcome, run_local

CALIBRATION = 2
"""Epochs that are trained to see how long one takes, where an experiment's length is given in seconds."""


@dataclass(frozen=True)
class Way:
    """How and where units are run.

    Attributes:
        out: Folder of the journal and of the states of units.
        jobs: How many units at once.
        limits: Of each.
        ray: Address of a Ray cluster; None for this machine.
        launch: A command that starts a unit, as ``accelerate launch --num_processes 2``; empty for none.
        fresh: Whether to take nothing of an earlier run.
    """

    out: Path
    jobs: int = 1
    limits: Limits = field(default_factory=lambda: Limits(seconds=86_400.0))
    ray: str | None = None
    launch: tuple[str, ...] = ()
    fresh: bool = False


class Watcher(Protocol):
    """Who watches a run."""

    def begin(self, phase: str, units: Sequence[Unit], known: int) -> None:
        """A phase begins: its units, and how many of them are there from an earlier run."""

    def epoch(self, unit: Unit, done: int) -> None:
        """A unit has trained so many epochs."""

    def ended(self, unit: Unit, outcome: Result | Lost) -> None:
        """A unit is done, or lost."""


class Nobody:
    """Who watches where nobody does."""

    def begin(self, phase: str, units: Sequence[Unit], known: int) -> None:
        """As of `Watcher`."""

    def epoch(self, unit: Unit, done: int) -> None:
        """As of `Watcher`."""

    def ended(self, unit: Unit, outcome: Result | Lost) -> None:
        """As of `Watcher`."""


def run_experiment(recipe: Recipe, way: Way, watcher: Watcher | None = None) -> Experiment:
    """Run those units of an experiment that have no result in its journal, and analyse all of it.

    Args:
        recipe: The experiment.
        way: How and where.
        watcher: Is told how far it is.

    Raises:
        ConfigError: Another run is at work in the folder, or nothing can be written to it, or there is no Ray.
    """
    try:
        way.out.mkdir(parents=True, exist_ok=True)
        with FileLock(way.out / ".lock", timeout=0):
            return _Runs(recipe, way, watcher or Nobody()).experiment()
    except Timeout as error:
        raise ConfigError(f"another run is at work in {way.out}: wait for it, or give another --out") from error
    except OSError as error:
        raise ConfigError(f"nothing can be written to {way.out}: {error}") from error


class _Runs:
    """The units of an experiment, run in phases.

    Args:
        recipe: The experiment.
        way: How and where.
        watcher: Is told how far it is.
    """

    def __init__(self, recipe: Recipe, way: Way, watcher: Watcher) -> None:
        self.recipe, self.way, self.watcher = recipe, way, watcher
        self.journal = Journal(way.out / "journal.jsonl", "an experiment", way.limits, fresh=way.fresh)
        self.lost: list[Lost] = []
        self.code = [*versions(), *_versions().values(), code_digest(), own_code(recipe.model)]  # reads many files

    def experiment(self) -> Experiment:
        """Everything."""
        arms = {name: ArmFacts(rate=None, epochs=count) for name, count in self._epochs().items()}
        self._choose(arms)
        seeds = range(self.recipe.seeds)
        units = [
            Unit(name, facts.rate, seed, facts.epochs, tests=True)
            for seed in seeds for name, facts in arms.items() if facts.rate is not None
        ]  # fmt: skip
        results = self._run("training", units)
        for name, facts in arms.items():
            _add_facts(facts, [one for one in results if one.unit.arm == name])
        order = {name: place for place, name in enumerate(self.recipe.arms)}
        results.sort(key=lambda one: (order[one.unit.arm], one.unit.seed))
        machine = {"system": platform.system(), "processor": platform.machine(), "cores": str(os.cpu_count())}
        machine["device"] = ", ".join(sorted({one.device for one in results}))
        machine["processes of a unit"] = ", ".join(sorted({str(one.processes) for one in results}))
        metric = results[0].metric if results else "accuracy"
        return analysed(Experiment(self.recipe, _versions(), machine, metric, arms, results, self.lost))

    def _epochs(self) -> dict[str, int]:
        """Arm -> epochs of each of its units."""
        if self.recipe.epochs is not None:
            return dict.fromkeys(self.recipe.arms, self.recipe.epochs)
        assert self.recipe.seconds is not None
        rate, seed = self.recipe.rates[0], self.recipe.seeds
        units = [Unit(name, rate, seed, CALIBRATION, tests=False) for name in self.recipe.arms]
        found = {one.unit.arm: min(one.seconds) for one in self._run("timing", units)}
        return {name: max(1, math.floor(self.recipe.seconds / seconds)) for name, seconds in found.items()}

    def _choose(self, arms: dict[str, ArmFacts]) -> None:
        """Give each arm its best rate."""
        seeds = range(self.recipe.seeds, self.recipe.seeds + self.recipe.tuning)
        several = len(self.recipe.rates) > 1
        units = [
            Unit(name, rate, seed, facts.epochs, tests=False)
            for seed in seeds for name, facts in arms.items() if several and self._has_rate(name)
            for rate in self.recipe.rates
        ]  # fmt: skip
        results = self._run("choosing rates", units) if units else []
        for name, facts in arms.items():
            of = [one for one in results if one.unit.arm == name]
            facts.tuning = {
                f"{rate:g}": [_last(one) for one in of if one.unit.rate == rate]
                for rate in self.recipe.rates if of
            }  # fmt: skip
            alone = not several or not self._has_rate(name)
            facts.rate = self.recipe.rates[0] if alone else best_rate(self.recipe.rates, facts.tuning)

    def _has_rate(self, name: str) -> bool:
        """Whether an arm trains anything; the base alone, frozen, does not."""
        arm = self.recipe.arms[name]
        return not (self.recipe.frozen and arm.kind == "base" and not arm.also)

    def _run(self, phase: str, units: list[Unit]) -> list[Result]:
        """The results of units; those that have none are noted."""
        key = {unit: self._key(unit) for unit in units}
        there = {unit: _taken(unit, self.journal.known(key[unit])) for unit in units}
        known = {unit: one for unit, one in there.items() if isinstance(one, Result)}
        self.watcher.begin(phase, units, len(known))
        results: list[Result] = []

        def take(unit: Unit, taken: Result | Lost) -> None:
            if isinstance(taken, Lost):
                self.lost.append(taken)
            else:
                results.append(taken)
            self.watcher.ended(unit, taken)

        for unit, result in known.items():
            take(unit, result)

        def report(task: Task, outcome: Outcome) -> None:
            self.journal.add(key[task.unit], outcome)
            take(task.unit, _taken(task.unit, outcome))

        folder = self.way.out / "units"
        tasks = [Task(self.recipe, unit, folder, self.way.launch) for unit in units if unit not in known]
        if self.way.ray is not None:
            run_remote(JOB, tasks, self.way.ray, self.way.jobs, self.way.limits, report)
        else:
            run_local(JOB, tasks, self.way.jobs, self.way.limits, report, self._told)
        return results

    def _told(self, task: Task, done: int) -> None:
        self.watcher.epoch(task.unit, done)

    def _key(self, unit: Unit) -> str:
        """What a unit depends on, and nothing else: an arm or a seed more leaves the others as they are."""
        given = self.recipe.model_dump(mode="json")
        unneeded = ("name", "about", "arms", "declared", "predicted", "seeds", "tuning", "rates", "epochs", "seconds")
        common = {name: value for name, value in given.items() if name not in unneeded}
        parts = [common, given["arms"][unit.arm], asdict(unit), self.code, self.way.launch]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _taken(unit: Unit, outcome: Outcome | None) -> Result | Lost:
    """What a unit's process gave; None is that of one that has not run."""
    if outcome is None:
        return Lost(unit, "it has not run")
    if outcome.data is None:
        return Lost(unit, outcome.reason)
    if FAILED in outcome.data:
        return Lost(unit, outcome.data[FAILED])
    return result_of(outcome.data)


def _last(result: Result) -> float:
    """The validation score of the weights that would be tested."""
    return result.validation[-1 if result.best is None else result.best]


def best_rate(rates: Iterable[float], tuning: dict[str, list[float]]) -> float | None:
    """The rate with the best mean score, of equal ones the smallest; None if no rate has a score.

    A score that is no number, as of a unit that diverged, is the worst there is.
    """

    def mean(rate: float) -> float:
        scores = tuning[f"{rate:g}"]
        return -math.inf if any(map(math.isnan, scores)) else fmean(scores)

    having = [rate for rate in sorted(rates) if tuning.get(f"{rate:g}")]
    return max(having, key=mean) if having else None


def _add_facts(facts: ArmFacts, results: list[Result]) -> None:
    """What the units of an arm say about it."""
    if not results:
        return
    first = results[0]
    facts.parameters, facts.trained, facts.added = first.parameters, first.trained, first.added
    measured = next((one for one in results if one.macs is not None or one.kept_bytes is not None), first)
    facts.macs, facts.kept_bytes = measured.macs, measured.kept_bytes
    facts.seconds = median(median(one.seconds) for one in results)


def _versions() -> dict[str, str]:
    names = ("torch", "accelerate", "torchmetrics", "scipy", "statsmodels")
    return {"aimgraph": versions()[1], "python": platform.python_version()} | {name: version(name) for name in names}
