"""Rates and ends that follow from how far training is, and from nothing else."""

import math
from typing import Any

import pytest

from aimgraph.experiment.recipe import Recipe
from aimgraph.experiment.schedule import best_epoch, is_over, plateaus, rate_at
from tests.experiment.test_run import recipe


def test_the_rate_of_each_schedule() -> None:
    def rates(schedule: str, scores: list[float]) -> list[float]:
        one = recipe(schedule=schedule)
        return [rate_at(one, 0.1, done, scores) for done in (0.0, 0.5, 1.0)]

    assert rates("constant", []) == [0.1] * 3
    assert rates("cosine", []) == pytest.approx([0.1, 0.05, 0.0])
    assert rates("plateau", [0.5, 0.5, 0.5, 0.5]) == pytest.approx([0.01] * 3)


@pytest.mark.parametrize(
    ("scores", "count"),
    [
        ([], 0),
        ([0.1, 0.2, 0.3, 0.4], 0),
        ([0.5, 0.5, 0.5], 0),
        ([0.5, 0.5, 0.5, 0.5], 1),
        ([0.5, 0.50009, 0.50009, 0.50009], 1),  # less than what counts as better
        ([0.5] * 7, 2),
        ([0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5], 1),
        ([0.5, math.nan, math.nan, math.nan], 1),
    ],
)
def test_plateaus_are_counted(scores: list[float], count: int) -> None:
    assert plateaus(scores) == count


@pytest.mark.parametrize(
    ("patience", "scores", "over"),
    [
        (None, [0.5] * 99, False),
        (2, [0.5, 0.5], False),
        (2, [0.5, 0.5, 0.5], True),
        (2, [0.5, 0.5, 0.6], False),
        (2, [0.5, 0.5005, 0.5009], True),
        (1, [math.nan], True),
    ],
)
def test_patience_ends(patience: int | None, scores: list[float], over: bool) -> None:
    changed: dict[str, Any] = {"patience": patience}
    one: Recipe = recipe(**changed)
    assert is_over(one, scores) is over


def test_the_best_epoch_is_the_first_of_equal_ones() -> None:
    assert best_epoch([0.1, 0.3, 0.3, math.nan]) == 1
    assert best_epoch([math.nan, math.nan]) == 0
