"""Maps of values."""

import re

import pytest
import torch

from aimgraph.web.heat import LONGEST_SIDE, MOST_MAPS, heat_maps
from aimgraph.web.subject import Held


def cells(picture: object) -> dict[tuple[int, int], int]:
    """Column and row -> level, from the paths of a map."""
    found = {}
    for path in picture.iter("path"):  # type: ignore[attr-defined]
        level = int(path.attrib["class"].removeprefix("h"))
        for x, y, length in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path.attrib["d"]):
            found |= {(int(x) + i, int(y)): level for i in range(int(length))}
    return found


def test_each_channel_is_a_map_and_zero_is_in_the_middle() -> None:
    values = torch.tensor([[[0.0, 1.0], [-1.0, 0.5]], [[0.2, 0.0], [0.0, -0.5]]])
    first, second = heat_maps(Held("source", (2, 2, 2), values.flatten()))
    assert cells(first) == {(0, 0): 5, (1, 0): 0, (0, 1): 6, (1, 1): 5}
    assert cells(second) == {(0, 0): 10, (1, 0): 7, (0, 1): 5, (1, 1): 3}


def test_one_scale_for_all_channels() -> None:
    values = torch.zeros(1, 1, 2)
    values[0, 0] = torch.tensor([1.0, 10.0])
    small, large = (cells(one) for one in heat_maps(Held("source", (1, 1, 2), values.flatten())))
    assert small[0, 0] in (5, 6)
    assert large[0, 0] == 10


def test_a_vector_is_wrapped_and_ends_where_it_ends() -> None:
    (one,) = heat_maps(Held("source", (10,), torch.ones(10)))
    assert sum(level == 10 for level in cells(one).values()) == 10


@pytest.mark.parametrize("shape", [(7, 7, 1024), (300, 200, 2), (1, 500, 3), (100_000,), (500, 1, 1)])
def test_large_memories_stay_small(shape: tuple[int, ...]) -> None:
    size = int(torch.tensor(shape).prod())
    maps = heat_maps(Held("source", shape, torch.randn(size, generator=torch.Generator().manual_seed(0))))
    assert 1 <= len(maps) <= MOST_MAPS
    assert sum(len(cells(one)) for one in maps) <= 13_000
    assert max(max(place) for one in maps for place in cells(one)) < LONGEST_SIDE


def test_what_is_not_finite_is_shown_as_zero() -> None:
    values = torch.tensor([float("nan"), 1.0, float("inf"), -1.0])
    (one,) = heat_maps(Held("source", (2, 2, 1), values))
    assert cells(one) == {(0, 0): 5, (1, 0): 10, (0, 1): 5, (1, 1): 0}


def test_zeros_are_all_the_middle_colour() -> None:
    (one,) = heat_maps(Held("source", (2, 2, 1), torch.zeros(4)))
    assert set(cells(one).values()) == {5}
