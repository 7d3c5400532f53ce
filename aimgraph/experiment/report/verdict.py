"""What stands on top: the verdict in one sentence, and what a reader has to know before believing it."""

import math
from collections import Counter
from collections.abc import Iterator

from aimgraph.experiment.report.formats import pair, scale_of
from aimgraph.experiment.report.gathered import at_edge, found, is_declared, tested, units_of
from aimgraph.experiment.results import Experiment
from aimgraph.experiment.statistics import POWER, Comparison
from aimgraph.web.formats import number_of

ENOUGH = 10
"""Pairs of seeds below which a verdict is called a weak one."""


def sentence(experiment: Experiment) -> str:
    """The verdicts of the declared comparisons, in one sentence.

    It gives each difference in points (of other metrics than accuracy: as a number), its 95 % interval, and how many
    seeds both arms have. Where no effect is shown, it gives the smallest difference that is found with 80 % power.
    """
    told = [_told(experiment, arm, base) for arm, base in experiment.recipe.declared]
    if not told:
        return "No comparison was declared beforehand, so there is no verdict: all differences are exploratory."
    text = "; ".join(told) + "."
    return text[0].upper() + text[1:] if text.startswith(_NO_EFFECT) else text


_NO_EFFECT = "no effect of"


def _told(experiment: Experiment, arm: str, base: str) -> str:
    one, scale = found(experiment.comparisons, arm, base), scale_of(experiment.metric)
    if one is None:
        return f"{arm} can't be compared with {base}: fewer than two seeds of both came through"
    if not math.isfinite(one.mean):
        return f"{arm} can't be compared with {base}: a score is not a finite number"
    ends = f"95 % interval {scale.gap(one.low)} to {scale.gap(one.high)}, {number_of(one.pairs, 'seed')}"
    if one.mean == one.low == one.high == 0:
        return f"{_NO_EFFECT} {arm} shown: it has the test {scale.name} of {base} with each of {one.pairs} seeds"
    side = "above" if one.mean > 0 else "below"
    beside = f"its test {scale.name} is {scale.size(one.mean)} {side} that of {base} ({ends})"
    if one.verdict == "no effect shown":
        small = f"a difference of {scale.size(one.detectable)} would have shown with {POWER:.0%} power"
        return f"{_NO_EFFECT} {arm} shown: {beside}, and {small.replace('%', ' %')}"
    return f"{arm} {one.verdict}: {beside}"


def cautions(experiment: Experiment) -> list[str]:
    """What speaks against believing the verdict, a sentence or two each; none where nothing does."""
    parts = (_unpredicted, _lost, _still, _not_finite, _few, _at_equal_seconds, _edges)
    return [text for part in parts for text in part(experiment)]


def _unpredicted(experiment: Experiment) -> Iterator[str]:
    wrong = [one for one in experiment.predicted if not one.holds]
    if wrong:
        told = "; ".join(f"{one.says} (seen: {one.seen})" for one in wrong)
        yield (
            f"{len(wrong)} of {number_of(len(experiment.predicted), 'prediction')} did not hold: {told}. "
            "Find out why before you believe anything else here."
        )


def _lost(experiment: Experiment) -> Iterator[str]:
    lost = Counter(one.unit.arm for one in experiment.lost)
    if lost:
        arms = ", ".join(f"{arm} ({number})" for arm, number in lost.items())
        verb = "was" if len(experiment.lost) == 1 else "were"
        yield f"{number_of(len(experiment.lost), 'unit')} {verb} lost, of the arms {arms}: the reasons are below."
    for arm in experiment.arms:
        if not units_of(experiment, arm):
            yield f"{arm} has no result: none of its units came through."


def still(experiment: Experiment) -> list[tuple[str, str, int, int]]:
    """Parameters of memories that stood still: arm, name, seeds in which it did, seeds of the arm."""
    rows = []
    for arm in experiment.arms:
        units = units_of(experiment, arm)
        names = Counter(name for one in units for name in one.still)
        rows += [(arm, name, number, len(units)) for name, number in names.items()]
    return rows


def _still(experiment: Experiment) -> Iterator[str]:
    names = Counter(arm for arm, *_ in still(experiment))
    for arm, number in names.items():
        verb = "it was" if number == 1 else "they were"
        yield f"{arm}: {number_of(number, 'parameter')} of the memory stood still, though {verb} to be trained."


def _not_finite(experiment: Experiment) -> Iterator[str]:
    for arm in experiment.arms:
        units, kept = len(units_of(experiment, arm)), tested(experiment, arm).seeds
        if kept < units:
            yield f"{arm}: {number_of(units - kept, 'test score')} of {units} is not finite. Its mean leaves that out."


def _few(experiment: Experiment) -> Iterator[str]:
    few = [one for one in experiment.comparisons if is_declared(experiment, one) and one.pairs < ENOUGH]
    if few:
        told = ", ".join(f"{one.arm} and {one.base} have {one.pairs} in common" for one in few)
        yield f"A verdict takes {ENOUGH} seeds or more: {told}."


def _at_equal_seconds(experiment: Experiment) -> Iterator[str]:
    scale = scale_of(experiment.metric)
    for one in experiment.comparisons:
        timed = found(experiment.at_equal_seconds, one.arm, one.base)
        if timed is not None and is_declared(experiment, one) and _is_shown(one) and not _agree(one, timed):
            yield (
                f"Given equal seconds in place of equal epochs, this is not shown: {pair(one.arm, one.base)} is "
                f"{scale.gap(timed.mean)} {scale.interval(timed.low, timed.high)} on the validation examples."
            )


def _is_shown(one: Comparison) -> bool:
    return one.verdict in ("helps", "hurts")


def _agree(one: Comparison, timed: Comparison) -> bool:
    """Whether the interval at equal seconds lies on the side of the verdict."""
    return timed.low > 0 if one.mean > 0 else timed.high < 0


def _edges(experiment: Experiment) -> Iterator[str]:
    at = [arm for arm, facts in experiment.arms.items() if at_edge(experiment.recipe, facts)]
    if at:
        yield f"A rate beyond those that were tried may be better for {', '.join(at)}: the one chosen is at the edge."
