"""Rounds, medians and intervals."""

import random

from aimgraph.bench.measure import Ratio, compare, measured, ratio


def test_every_task_runs_once_a_round_and_the_first_round_does_not_count() -> None:
    ran: list[str] = []
    ticks = []

    def task(name: str) -> dict[str, float]:
        ran.append(name)
        return {"step": float(len(ran))}

    times = compare({n: lambda n=n: task(n) for n in "abc"}, 4, progress=lambda: ticks.append(1))
    assert len(ran) == len(ticks) == 15
    assert all(sorted(ran[i : i + 3]) == ["a", "b", "c"] for i in range(0, 15, 3))
    assert len({tuple(ran[i : i + 3]) for i in range(0, 15, 3)}) > 1
    assert {name: len(found["step"]) for name, found in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert min(t for found in times.values() for t in found["step"]) == 4


def test_a_ratio_of_medians_lies_in_its_interval() -> None:
    draw = random.Random(0)
    slow = [draw.uniform(1, 3) for _ in range(30)]  # what slows a round slows all of it
    these, those = [1.2 * s * draw.uniform(0.99, 1.01) for s in slow], [s * draw.uniform(0.99, 1.01) for s in slow]
    found = ratio(these, those)
    assert found.low <= found.value <= found.high
    assert found.low < 1.2 < found.high
    assert found.high - found.low < 0.1
    assert ratio(these, those) == found
    assert str(Ratio(1.0, 0.5, 2.0)) == "1.000 [0.500, 2.000]"


def test_a_median_has_its_range() -> None:
    found = measured([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 3.0)


def test_a_constant_ratio_is_exact() -> None:
    found = ratio([2.0] * 5, [4.0] * 5)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
