"""What units say together: at equal seconds, of one kind alone, and beside predictions."""

import math
from dataclasses import replace
from typing import Any

import pytest

from aimgraph.experiment.analysis import alike, analysed, checked, pairs_of, score_after, scores_of
from aimgraph.experiment.recipe import Prediction, Recipe
from aimgraph.experiment.results import ArmFacts, Experiment, Result, Unit
from aimgraph.experiment.statistics import Comparison
from tests.experiment.test_run import recipe


def unit(arm: str, seed: int, test: float, **changed: Any) -> Result:
    found = Result(Unit(arm, 0.01, seed, 4, tests=True), validation=[0.1, 0.2, 0.3, 0.4], test=test, trained=5)
    return replace(found, **changed)


def experiment(units: list[Result], seconds: dict[str, float], one: Recipe | None = None) -> Experiment:
    used = one or recipe()
    arms = {arm: ArmFacts(0.01, epochs=4, seconds=seconds.get(arm, 1.0), trained=5) for arm in used.arms}
    return Experiment(used, {}, {}, "accuracy", arms, units)


def three(gain: float = 0.2) -> list[Result]:
    gains = {"base": 0.0, "static": gain, "random": 0.0}
    return [
        unit(arm, seed, 0.5 + more + 0.01 * ((seed + place) % 3))
        for place, (arm, more) in enumerate(gains.items()) for seed in range(10)
    ]  # fmt: skip


def test_a_gain_helps_and_nothing_is_no_effect() -> None:
    found = analysed(experiment(three(), {}))
    assert [(one.arm, one.verdict) for one in found.comparisons] == [("static", "helps"), ("random", "exploratory")]
    assert analysed(experiment(three(-0.2), {})).comparisons[0].verdict == "hurts"
    assert analysed(experiment(three(0.0), {})).comparisons[0].verdict == "no effect shown"
    assert found.notes == []


def test_at_equal_seconds_a_slow_arm_is_looked_at_earlier() -> None:
    found = analysed(experiment(three(), {"static": 2.0}))
    assert found.at_equal_seconds[0].mean == pytest.approx(0.2 - 0.4)
    assert found.at_equal_seconds[0].verdict == "hurts"
    assert found.at_equal_seconds[1].mean == 0


def test_an_arm_that_trains_nothing_takes_no_time_that_others_could_have() -> None:
    made = experiment(three(), {"base": 1e-6})
    made.arms["base"].trained = 0
    assert analysed(made).at_equal_seconds[0].mean == pytest.approx(0.0)


@pytest.mark.parametrize(("time", "score"), [(0.0, 0.1), (0.9, 0.1), (1.0, 0.1), (2.99, 0.2), (3.0, 0.3), (99.0, 0.4)])
def test_the_score_at_a_time(time: float, score: float) -> None:
    assert score_after(unit("base", 0, 0.5), 1.0, time) == score


def test_units_of_another_number_of_processes_are_left_out() -> None:
    units = three()
    units[3] = replace(units[3], processes=2)
    units[4] = replace(units[4], device="cuda")
    assert len(alike(units)) == 28
    found = analysed(experiment(units, {}))
    assert found.comparisons[0].pairs == 8
    assert found.notes == [
        "2 units were trained by another number of processes, or on another device: they are left out"
    ]


def test_a_score_that_is_no_number_counts_as_nothing_learned() -> None:
    assert scores_of([unit("base", 0, math.nan), unit("base", 1, 0.5)]) == {"base": {0: 0.0, 1: 0.5}}


def test_pairs_that_nobody_declared_are_with_the_base() -> None:
    arms: dict[str, Any] = {"first": {"kind": "biases"}, "none": {"kind": "base"}, "more": {"kind": "norms"}}
    one = recipe(frozen=True, arms=arms, declared=[["more", "first"]])
    assert pairs_of(one) == ([("more", "first")], [("first", "none"), ("more", "none")])


COMPARED = Comparison("static", "base", 4, 0.1, 0.05, 0.15, 0.01, 0.1, 1.0, 0.05, 0.05, "helps")
SCORES = {"static": {0: 0.9, 1: 0.95, 2: 0.5, 3: 0.92}, "base": {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.15}}


@pytest.mark.parametrize(
    ("said", "holds", "seen"),
    [
        ({"at_least": 0.9, "share": 0.75}, True, "3 of 4 seeds are"),
        ({"at_least": 0.9}, False, "3 of 4 seeds are"),
        ({"at_most": 0.95}, True, "4 of 4 seeds are"),
        ({"at_most": 0.94}, False, "3 of 4 seeds are"),
        ({"above": "base"}, True, "+0.63 [+0.173, +1.09]"),
        ({"verdict": "helps"}, True, "verdict: helps"),
        ({"verdict": "hurts"}, False, "verdict: helps"),
        ({"at_least": 0.4, "verdict": "no effect shown"}, False, "4 of 4 seeds are, verdict: helps"),
    ],
)
def test_predictions_beside_what_came(said: dict[str, Any], holds: bool, seen: str) -> None:
    found = checked(Prediction(arm="static", **said), SCORES, [COMPARED])
    assert (found.holds, found.seen) == (holds, seen)
    assert found.says.startswith("static: ")


def test_a_prediction_of_an_arm_without_units_does_not_hold() -> None:
    found = checked(Prediction(arm="random", at_most=1.0), SCORES, [])
    assert (found.holds, found.seen) == (False, "no unit came through")
