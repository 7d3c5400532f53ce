"""What an experiment gave, as data: units, what arms cost, comparisons, predictions. Written and read as JSON."""

import json
import math
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from aimgraph.errors import ConfigError
from aimgraph.experiment.recipe import Recipe, recipe_of
from aimgraph.experiment.statistics import Comparison

FORMAT = 1


@dataclass(frozen=True)
class Unit:
    """What is trained.

    Attributes:
        arm: Its name.
        rate: The learning rate.
        seed: Of the initial weights, the memory, the examples and their order.
        epochs: Passes over the data.
        tests: Whether the test examples are looked at in the end.
    """

    arm: str
    rate: float
    seed: int
    epochs: int
    tests: bool

    def __str__(self) -> str:
        """For names of files and progress."""
        return f"{self.arm}-{self.rate:g}-{self.seed}"


@dataclass
class Result:
    """What came of a unit.

    Attributes:
        unit: The unit.
        metric: What scores are: ``accuracy``, or ``R2`` where numbers are learned. More is better.
        validation: Score after each epoch.
        loss: Mean of each epoch.
        seconds: Of each epoch's training, without what is measured.
        test: Score on the test examples; None where they are not looked at.
        best: The epoch, from 0, whose weights are tested, where that is the best one; None otherwise.
        parameters: All that the module has.
        trained: Of them, those that are trained.
        added: Of them, those that are no part of the base.
        macs: Multiply-adds of one example's forward; None where they were not measured.
        kept_bytes: What the forward of one batch keeps for the backward; None where it was not measured.
        processes: How many trained together.
        device: ``cpu``, ``cuda``, ...
        still: Names of parameters of the memory that had no gradient or did not move, though they are to be trained.
        probes: What was done to the trained memory -> score on the validation examples.
        notes: What else has to be known: an end before the last epoch, layers that an arm left out, ...
    """

    unit: Unit
    metric: str = "accuracy"
    validation: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    test: float | None = None
    best: int | None = None
    parameters: int = 0
    trained: int = 0
    added: int = 0
    macs: int | None = None
    kept_bytes: int | None = None
    processes: int = 1
    device: str = "cpu"
    still: list[str] = field(default_factory=list)
    probes: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As data for JSON, which has no form for what is not a finite number: that is a text, ``nan`` or ``inf``."""
        plain: dict[str, Any] = _plain(self)
        return plain


def result_of(data: dict[str, Any]) -> Result:
    """A result from its data."""
    read: dict[str, Any] = {name: [float(one) for one in data[name]] for name in ("validation", "loss", "seconds")}
    read["probes"] = {name: float(score) for name, score in data["probes"].items()}
    read["test"] = None if data["test"] is None else float(data["test"])
    return Result(**(data | read | {"unit": Unit(**data["unit"])}))


@dataclass(frozen=True)
class Lost:
    """A unit that has no result.

    Attributes:
        unit: The unit.
        reason: Why: what it raised, how its process ended, or that its time was over.
    """

    unit: Unit
    reason: str


@dataclass
class ArmFacts:
    """What is known of an arm beside its scores.

    Attributes:
        rate: The learning rate that was chosen for it; None where no unit of it came through.
        tuning: Rate -> scores on the validation examples by which it was chosen, one for each seed.
        epochs: Passes over the data of each unit.
        parameters: All that the trained module has.
        trained: Of them, those that are trained.
        added: Of them, those that are no part of the base.
        macs: Multiply-adds of one example's forward.
        kept_bytes: What a forward of one batch keeps for the backward; None where it can't be measured.
        seconds: Median of an epoch's training.
    """

    rate: float | None
    tuning: dict[str, list[float]] = field(default_factory=dict)
    epochs: int = 0
    parameters: int = 0
    trained: int = 0
    added: int = 0
    macs: int | None = None
    kept_bytes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Checked:
    """A prediction beside what came out.

    Attributes:
        says: The prediction in words.
        seen: What came out, in words.
        holds: Whether they agree.
    """

    says: str
    seen: str
    holds: bool


@dataclass
class Experiment:
    """An experiment that was run.

    Attributes:
        recipe: What was asked for.
        versions: Name -> version, of what computed it.
        machine: Name -> what it was, as ``cores``, ``device``.
        metric: As of `Result`.
        arms: Name -> facts.
        units: Those that looked at the test examples, in the order of arms and seeds.
        lost: Units without a result.
        comparisons: By the scores on the test examples, the declared ones first.
        at_equal_seconds: The same pairs by validation scores at the time at which the quicker arm of the two was done.
        predicted: What was predicted, and whether it came.
        notes: What is missing from the comparisons.
    """

    recipe: Recipe
    versions: dict[str, str]
    machine: dict[str, str]
    metric: str
    arms: dict[str, ArmFacts]
    units: list[Result]
    lost: list[Lost] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    at_equal_seconds: list[Comparison] = field(default_factory=list)
    predicted: list[Checked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether all units have a result, all of every memory learned, and all predictions came."""
        return not self.lost and not any(one.still for one in self.units) and all(one.holds for one in self.predicted)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        found = {name: value for name, value in vars(self).items() if name != "recipe"}
        plain = {name: _plain(value) for name, value in found.items()}
        return {"format": FORMAT, "digest": self.recipe.digest, "recipe": self.recipe.model_dump(mode="json"), **plain}


def experiment_of(data: dict[str, Any]) -> Experiment:
    """An experiment from its data."""
    if data["format"] != FORMAT:
        raise ValueError(f"it has format {data['format']}, and this aimgraph reads {FORMAT}")
    return Experiment(
        recipe=recipe_of(data["recipe"]),
        versions=data["versions"],
        machine=data["machine"],
        metric=data["metric"],
        arms={name: _facts(facts) for name, facts in data["arms"].items()},
        units=[result_of(one) for one in data["units"]],
        lost=[Lost(Unit(**one["unit"]), one["reason"]) for one in data["lost"]],
        comparisons=[Comparison(**one) for one in data["comparisons"]],
        at_equal_seconds=[Comparison(**one) for one in data["at_equal_seconds"]],
        predicted=[Checked(**one) for one in data["predicted"]],
        notes=data["notes"],
    )


def _facts(data: dict[str, Any]) -> ArmFacts:
    tuning = {rate: [float(one) for one in scores] for rate, scores in data["tuning"].items()}
    return ArmFacts(**(data | {"tuning": tuning}))


def read_experiment(path: Path) -> Experiment:
    """An experiment from its ``results.json``.

    Raises:
        ConfigError: The file is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return experiment_of(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no results of an experiment: {type(error).__name__}: {error}") from error


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
