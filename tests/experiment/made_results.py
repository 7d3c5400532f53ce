"""Experiments with made numbers, as large and as odd as a test wants them."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from aimgraph.experiment.recipe import Recipe, recipe_of
from aimgraph.experiment.results import ArmFacts, Checked, Experiment, Lost, Result, Unit
from aimgraph.experiment.statistics import compared

KINDS = ("base", "static", "update", "state", "article", "zero", "random", "coordinates", "bias-map", "wide")
RATES = (0.001, 0.003, 0.01)
PROBES = ("reset", "mean", "shuffled", "swapped", "state off", "batch 1", "permuted")


def made_recipe(arms: Sequence[str], seeds: int, epochs: int, **more: object) -> Recipe:
    """A recipe whose first arm is the base of up to two declared comparisons."""
    given = {
        "name": "made-up",
        "about": "Does a memory help on made numbers?",
        "model": "zoo/mlp",
        "data": {"name": "digits"},
        "arms": {arm: {"kind": KINDS[place % len(KINDS)]} for place, arm in enumerate(arms)},
        "declared": [[arm, arms[0]] for arm in arms[1:3]],
        "seeds": seeds,
        "epochs": epochs,
        "rates": RATES,
    }
    return recipe_of(given | more)


def made_experiment(
    arms: Sequence[str] = ("base", "static", "update", "wide"),
    seeds: int = 10,
    epochs: int = 12,
    gain: Callable[[int], float] = lambda place: 0.015 * place,
    noise: float = 0.01,
    metric: str = "accuracy",
    **more: object,
) -> Experiment:
    """An experiment in which arm number `place` is `gain(place)` above the first.

    Args:
        arms: Names.
        seeds: How many units of each.
        epochs: Of each unit.
        gain: Mean difference to the first arm.
        noise: Standard deviation of each score.
        metric: Of the scores.
        more: Further keys of the recipe.
    """
    recipe, random = made_recipe(arms, seeds, epochs, **more), np.random.default_rng(0)
    units = [
        _unit(arm, place, seed, epochs, 0.8 + gain(place), noise, metric, random)
        for place, arm in enumerate(arms)
        for seed in range(seeds)
    ]
    made = Experiment(
        recipe=recipe,
        versions={"aimgraph": "0.1.0", "torch": "2.13.0"},
        machine={"cores": "2", "device": "cpu"},
        metric=metric,
        arms={arm: _facts(place, epochs) for place, arm in enumerate(arms)},
        units=units,
    )
    return with_comparisons(made)


def _unit(
    arm: str, place: int, seed: int, epochs: int, level: float, noise: float, metric: str, random: np.random.Generator
) -> Result:
    at = np.arange(1, epochs + 1)
    validation = level - 0.7 * np.exp(-6 * at / max(epochs, 6)) + noise * random.normal(size=epochs)
    plain = float(validation[-1])
    probes = {"plain": plain} | {
        name: plain - 0.02 * (n + place) + noise * random.normal() for n, name in enumerate(PROBES)
    }
    probes |= {f"strength {s:g}": plain - 0.1 * abs(s - 1) * place for s in (0, 0.25, 0.5, 0.75, 1.25, 1.5)}
    return Result(
        Unit(arm, 0.003, seed, epochs, True),
        metric=metric,
        validation=[float(value) for value in validation],
        loss=[float(value) for value in 2 * np.exp(-at / 5)],
        seconds=[float(value) for value in (1 + 0.3 * place) * (1 + 0.05 * random.random(epochs))],
        test=float(level + noise * random.normal()),
        trained=1000 * 3**place,
        added=500 * place,
        probes=probes if place else {},
    )


def _facts(place: int, epochs: int) -> ArmFacts:
    tuning = {str(rate): [0.7 + 0.01 * place + rate, 0.72] for rate in RATES}
    return ArmFacts(
        rate=RATES[1 + place % 2],
        tuning=tuning,
        epochs=epochs,
        parameters=5000 + 500 * place,
        trained=1000 * 3**place,
        added=500 * place,
        macs=3_900_000 * (1 + place),
        kept_bytes=12_300_000 * (1 + place),
        seconds=1.0 + 0.3 * place,
    )


def with_comparisons(made: Experiment) -> Experiment:
    """Compare again, after scores were changed: the declared pairs, and every arm with the one before it."""
    seeds: dict[str, dict[int, float]] = {}
    timed: dict[str, dict[int, float]] = {}
    for one in made.units:
        seeds.setdefault(one.unit.arm, {})[one.unit.seed] = math.nan if one.test is None else one.test
        timed.setdefault(one.unit.arm, {})[one.unit.seed] = one.validation[len(one.validation) // 2]
    declared = [pair for pair in made.recipe.declared if _common(seeds, pair)]
    names = list(made.arms)
    others = [pair for pair in zip(names[1:], names[:-1], strict=True) if pair not in declared and _common(seeds, pair)]
    made.comparisons = compared(seeds, declared, others)
    made.at_equal_seconds = compared(timed, declared, others)
    return made


def _common(scores: dict[str, dict[int, float]], pair: tuple[str, str]) -> bool:
    first, second = (scores.get(name, {}) for name in pair)
    return len(first.keys() & second.keys()) > 1


NASTY = "<script>alert('x')</script> | **bold** `code` & \x1b[31mred\x1b[0m\n# second line [a](b)"


def with_troubles(made: Experiment) -> Experiment:
    """The same with lost units, parameters that stood still, a failed prediction and texts that want escaping."""
    arm = list(made.arms)[1]
    made.lost = [Lost(Unit(arm, 0.01, 3, 12, True), NASTY), Lost(Unit(arm, 0.01, 11, 12, False), "time was over")]
    made.units = [one for one in made.units if (one.unit.arm, one.unit.seed) != (arm, 3)]
    made.units[-1].still = ["aim.m.reads.layer1<b>"]
    made.predicted = [Checked(f"{arm} above 0.9", NASTY, False), Checked("base below 0.9", "0.80", True)]
    made.machine["node"] = NASTY
    return with_comparisons(made)
