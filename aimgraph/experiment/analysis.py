"""What the units of an experiment say together: comparisons at equal epochs and at equal seconds, and predictions."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from aimgraph.experiment.recipe import Prediction, Recipe
from aimgraph.experiment.results import ArmFacts, Checked, Experiment, Result
from aimgraph.experiment.statistics import Comparison, compared, judged, paired

Scores: TypeAlias = Mapping[str, Mapping[int, float]]
"""Arm -> seed -> score."""

Pair: TypeAlias = tuple[str, str]
"""An arm, and what it is compared with."""


def analysed(experiment: Experiment) -> Experiment:
    """The experiment with its comparisons, its predictions beside what came out, and notes on what is missing."""
    recipe, units = experiment.recipe, alike(experiment.units)
    scores = scores_of(units)
    declared, others = pairs_of(recipe)
    asked, more = ([pair for pair in pairs if _seeds(scores, pair) > 1] for pairs in (declared, others))
    later = {pair: _at_equal_seconds(units, experiment.arms, pair) for pair in (*asked, *more)}
    comparisons = compared(scores, asked, more)
    at_equal_seconds = judged([later[pair] for pair in asked]) + [later[pair] for pair in more]
    notes = [
        f"{arm} and {base} have {_seeds(scores, (arm, base))} seeds in common: they are not compared"
        for arm, base in (*declared, *others) if (arm, base) not in later
    ]  # fmt: skip
    if left := len(experiment.units) - len(units):
        notes.append(
            f"{left} units were trained by another number of processes, or on another device: they are left out"
        )
    predicted = [checked(one, scores, comparisons) for one in recipe.predicted]
    return replace(
        experiment, comparisons=comparisons, at_equal_seconds=at_equal_seconds, predicted=predicted, notes=notes
    )


def alike(units: Sequence[Result]) -> list[Result]:
    """Units that were trained by one number of processes on one kind of device: the most there are."""
    kinds: dict[tuple[int, str], list[Result]] = defaultdict(list)
    for one in units:
        kinds[one.processes, one.device].append(one)
    return max(kinds.values(), key=len, default=[])


def scores_of(units: Iterable[Result]) -> dict[str, dict[int, float]]:
    """Scores on the test examples. One that is no number counts as that of a model that knows nothing: 0."""
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for one in units:
        if one.test is not None:
            scores[one.unit.arm][one.unit.seed] = one.test if math.isfinite(one.test) else 0.0
    return dict(scores)


def pairs_of(recipe: Recipe) -> tuple[list[Pair], list[Pair]]:
    """The declared comparisons, and the exploratory ones: every other arm beside the first one of kind ``base``."""
    bases = [name for name, arm in recipe.arms.items() if arm.kind == "base"]
    base = (bases or list(recipe.arms))[0]
    declared = list(recipe.declared)
    return declared, [(name, base) for name in recipe.arms if name != base and (name, base) not in declared]


def _seeds(scores: Scores, pair: Pair) -> int:
    """How many seeds both have."""
    return len(scores.get(pair[0], {}).keys() & scores.get(pair[1], {}).keys())


def _at_equal_seconds(units: Sequence[Result], arms: Mapping[str, ArmFacts], pair: Pair) -> Comparison:
    """A pair by its validation scores at the time at which the quicker of the two was done."""
    ends = [(arms[name].seconds or 0.0) * arms[name].epochs for name in pair if arms[name].trained] or [0.0]
    scores: dict[str, dict[int, float]] = {name: {} for name in pair}
    for one in units:
        if one.unit.arm in scores and one.validation:
            scores[one.unit.arm][one.unit.seed] = score_after(one, arms[one.unit.arm].seconds or 0.0, min(ends))
    return paired(scores, *pair)


def score_after(result: Result, seconds: float, time: float) -> float:
    """The validation score after the last epoch that was done at a time, or after the first.

    Args:
        result: Of a unit.
        seconds: How long an epoch takes.
        time: In seconds, from the beginning.
    """
    done = math.floor(time / seconds + 1e-9) if seconds else len(result.validation)
    score = result.validation[min(max(done, 1), len(result.validation)) - 1]
    return score if math.isfinite(score) else 0.0


def checked(prediction: Prediction, scores: Scores, comparisons: Sequence[Comparison]) -> Checked:
    """A prediction beside what came out."""
    arm, of = prediction.arm, list(scores.get(prediction.arm, {}).values())
    says, seen, holds = [], [], [bool(of)]
    for word, bound, sign in (("at least", prediction.at_least, 1), ("at most", prediction.at_most, -1)):
        if bound is not None:
            hits = sum(sign * score >= sign * bound for score in of)
            says.append(f"{word} {bound:g} in {prediction.share:.0%} of the seeds")
            seen.append(f"{hits} of {len(of)} seeds are")
            holds.append(hits >= prediction.share * len(of))
    if prediction.above is not None:
        says.append(f"above {prediction.above}")
        told, is_above = _above(scores, arm, prediction.above)
        seen.append(told)
        holds.append(is_above)
    if prediction.verdict is not None:
        verdict = next((one.verdict for one in comparisons if one.arm == arm and one.verdict != "exploratory"), "none")
        says.append(f"verdict: {prediction.verdict}")
        seen.append(f"verdict: {verdict}")
        holds.append(verdict == prediction.verdict)
    return Checked(f"{arm}: {', '.join(says)}", ", ".join(seen) if of else "no unit came through", all(holds))


def _above(scores: Scores, arm: str, other: str) -> tuple[str, bool]:
    if _seeds(scores, (arm, other)) < 2:
        return f"too few seeds of {arm} and {other}", False
    found = paired(scores, arm, other)
    return f"{found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}]", found.low > 0
