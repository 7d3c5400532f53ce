"""Times side by side: every round runs every task once, in another order, so that what slows a machine slows all."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Task = Callable[[], Mapping[str, float]]
"""Does a piece of work and gives seconds by name."""

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measured:
    """Seconds of one task over all rounds.

    Attributes:
        median: Seconds.
        low: The fastest round.
        high: The slowest.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """The median of one task over that of another.

    Attributes:
        value: The ratio.
        low: Lower end of its 95 % bootstrap interval, over rounds.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def compare(
    tasks: Mapping[str, Task], rounds: int, *, seed: int = 0, progress: Callable[[], None] = lambda: None
) -> dict[str, dict[str, list[float]]]:
    """Run every task once a round, in an order drawn anew, after one round that does not count.

    Args:
        tasks: Name -> task.
        rounds: How many count.
        seed: Of the orders.
        progress: Called after every task.

    Returns:
        Name -> what the task measures -> seconds of every round.
    """
    order, draw = list(tasks), random.Random(seed)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in order}
    for number in range(rounds + 1):
        draw.shuffle(order)
        for name in order:
            for what, seconds in tasks[name]().items():
                if number:
                    times[name].setdefault(what, []).append(seconds)
            progress()
    return times


def measured(seconds: Sequence[float]) -> Measured:
    """Median and range."""
    return Measured(statistics.median(seconds), min(seconds), max(seconds))


def ratio(these: Sequence[float], those: Sequence[float]) -> Ratio:
    """Median of `these` over median of `those`; the bootstrap draws whole rounds, since they share what slowed them.

    Args:
        these: Seconds of every round.
        those: The same rounds of another task.
    """
    draw, rounds = random.Random(0), list(zip(these, those, strict=True))

    def quotient(chosen: list[tuple[float, float]]) -> float:
        return statistics.median(one for one, _ in chosen) / statistics.median(other for _, other in chosen)

    drawn = sorted(quotient(draw.choices(rounds, k=len(rounds))) for _ in range(RESAMPLES))
    outside = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Ratio(quotient(rounds), drawn[outside], drawn[-1 - outside])
