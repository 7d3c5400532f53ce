"""Scores of all units of an arm, and what seeds have in common."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aimgraph.experiment.recipe import Recipe
from aimgraph.experiment.results import ArmFacts, Experiment, Result
from aimgraph.experiment.statistics import Comparison, interval
from aimgraph.web.formats import number_of


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Attributes:
        mean: NaN where there is no score.
        sd: Sample standard deviation; NaN where there are fewer than two.
        low: Lower end of the 95 % interval of the mean (Student's t); the mean where there are fewer than two.
        high: Its upper end.
        seeds: How many scores there are.
    """

    mean: float
    sd: float
    low: float
    high: float
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and 95 % interval of those values that are finite."""
    kept = np.array([value for value in values if math.isfinite(value)])
    if len(kept) < 2:
        mean = float(kept[0]) if len(kept) else math.nan
        return Spread(mean, math.nan, mean, mean, len(kept))
    low, high = interval(kept)
    return Spread(float(kept.mean()), float(kept.std(ddof=1)), low, high, len(kept))


def units_of(experiment: Experiment, arm: str) -> list[Result]:
    """The units of an arm that looked at the test examples."""
    return [one for one in experiment.units if one.unit.arm == arm and one.test is not None]


def tested(experiment: Experiment, arm: str) -> Spread:
    """Scores of an arm on the test examples."""
    return spread([one.test for one in units_of(experiment, arm) if one.test is not None])


def is_declared(experiment: Experiment, one: Comparison) -> bool:
    """Whether a comparison was declared before anything was run."""
    return (one.arm, one.base) in experiment.recipe.declared


def found(comparisons: Sequence[Comparison], arm: str, base: str) -> Comparison | None:
    """The comparison of two arms, if there is one."""
    return next((one for one in comparisons if (one.arm, one.base) == (arm, base)), None)


def at_edge(recipe: Recipe, facts: ArmFacts) -> bool:
    """Whether the rate that was chosen is the smallest or the largest of several that were tried."""
    grid = {*recipe.rates, *(float(rate) for rate in facts.tuning)}
    if facts.rate is None or len(grid) < 2 or facts.trained == 0:
        return False
    return any(math.isclose(facts.rate, edge, rel_tol=1e-6) for edge in (min(grid), max(grid)))


def length(recipe: Recipe) -> str:
    """How long each arm is trained."""
    if recipe.epochs is not None:
        told = number_of(recipe.epochs, "epoch")
        return told if recipe.patience is None else f"up to {told}"
    return f"{recipe.seconds:g} seconds, in whole epochs"


@dataclass(frozen=True)
class Curve:
    """Means over seeds along an axis.

    Attributes:
        x: Where, ascending.
        spreads: One for each place.
        values: The finite scores that each mean is of.
    """

    x: list[float]
    spreads: list[Spread]
    values: list[list[float]]


def learning_curves(experiment: Experiment, by: str) -> dict[str, Curve]:
    """Arm -> its validation scores along ``epochs`` or along ``seconds`` of training, means over seeds.

    A seed that ended early keeps its last score, and its epochs go on being as long as they were.
    """
    curves = {}
    for arm in experiment.arms:
        units = [one for one in experiment.units if one.unit.arm == arm and one.validation]
        if units:
            curves[arm] = _curve(units, by)
    return {arm: curve for arm, curve in curves.items() if any(curve.values)}


def _curve(units: list[Result], by: str) -> Curve:
    longest = max(len(one.validation) for one in units)
    scores = [one.validation + one.validation[-1:] * (longest - len(one.validation)) for one in units]
    if by == "epochs":
        x = [float(epoch + 1) for epoch in range(longest)]
    else:
        x = [float(time) for time in np.mean([_ends(one.seconds, longest) for one in units], axis=0)]
    at = list(zip(*scores, strict=True))
    return _means(x, at)


def _means(x: list[float], scores: Sequence[Sequence[float]]) -> Curve:
    """A curve of the scores at each place."""
    kept = [[score for score in one if math.isfinite(score)] for one in scores]
    return Curve(x, [spread(one) for one in kept], kept)


def _ends(seconds: list[float], epochs: int) -> np.ndarray:
    """When each epoch was over, in seconds of training."""
    mean = float(np.mean(seconds)) if seconds else math.nan
    return np.cumsum(seconds[:epochs] + [mean] * (epochs - len(seconds)))


def strength_curves(experiment: Experiment) -> dict[str, Curve]:
    """Arm -> its validation scores along the factor that its memory was multiplied by."""
    curves = {}
    for arm in experiment.arms:
        at: dict[float, list[float]] = {}
        for one in units_of(experiment, arm):
            for strength, score in _strengths(one.probes).items():
                at.setdefault(strength, []).append(score)
        if len(at) > 1:
            curves[arm] = _means(sorted(at), [at[strength] for strength in sorted(at)])
    return {arm: curve for arm, curve in curves.items() if any(curve.values)}


def _strengths(probes: dict[str, float]) -> dict[float, float]:
    found = {strength: score for name, score in probes.items() if (strength := strength_of(name)) is not None}
    return found | {1.0: probes["plain"]} if found and "plain" in probes else found


def strength_of(probe: str) -> float | None:
    """The factor in a probe's name, ``strength 0.5``; None if it is another one."""
    word, _, number = probe.partition(" ")
    try:
        return float(number) if word == "strength" else None
    except ValueError:
        return None


def probe_gaps(experiment: Experiment, arm: str) -> dict[str, Spread]:
    """Probe -> score - plain score of the units of an arm; strengths are left out."""
    gaps: dict[str, list[float]] = {}
    for one in units_of(experiment, arm):
        for name, score in one.probes.items():
            if "plain" in one.probes and name != "plain" and strength_of(name) is None:
                gaps.setdefault(name, []).append(score - one.probes["plain"])
    return {name: spread(values) for name, values in gaps.items()}
