"""One definition of how far outputs are from each other."""

import math

import numpy as np
import pytest
import torch

from aimgraph.distance import distance, farthest

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        ([1.0, 2.0], [1.0, 4.0], (2.0, 0.5)),
        ([1.0, 2.0], [0.0, 0.0], (2.0, 2.0e30)),
        ([], [], (0.0, 0.0)),
        ([1.0, NAN, INF, -INF], [2.0, NAN, INF, -INF], (1.0, 0.5)),
        ([INF, 1.0], [2.0, 1.0], (INF, INF)),
        ([1.0], [1.0, 1.0], (INF, INF)),
        ([3 + 4j], [0 + 0j], (5.0, 5.0e30)),
        ([True, False], [True, True], (1.0, 1.0)),
    ],
)
def test_distance_of_tensors_and_of_arrays(given: list, wanted: list, expected: tuple[float, float]) -> None:
    assert distance(torch.tensor(given), torch.tensor(wanted)) == pytest.approx(expected)
    assert distance(np.array(given), np.array(wanted)) == pytest.approx(expected)


@pytest.mark.parametrize(("given", "wanted"), [([NAN, 1.0], [1.0, 1.0]), ([1.0, 1.0], [NAN, 1.0])])
def test_one_that_is_not_a_number_is_not_hidden_by_others(given: list, wanted: list) -> None:
    other = torch.tensor([1.0]), torch.tensor([3.0])
    for lists in (([other[0], torch.tensor(given)], [other[1], torch.tensor(wanted)]),):
        assert all(map(math.isnan, farthest(*lists)))
        assert all(map(math.isnan, farthest(*(one[::-1] for one in lists))))


def test_farthest_is_the_largest_of_each() -> None:
    given = [torch.tensor([1.0]), torch.tensor([10.0])]
    wanted = [torch.tensor([2.0]), torch.tensor([8.0])]
    assert farthest(given, wanted) == (2.0, 0.5)
    assert farthest(given, wanted[:1]) == (INF, INF)
    assert farthest([], []) == (0.0, 0.0)


def test_numbers_in_half_precision_are_compared_in_double() -> None:
    given = torch.tensor([60000.0], dtype=torch.float16)
    assert distance(given, -given)[0] == 2 * float(given)
