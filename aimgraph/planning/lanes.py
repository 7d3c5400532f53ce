"""Where the lanes of memories stand beside the rows of a plan, and the shape of what is read of them."""

from dataclasses import dataclass

from aimgraph.planning.plan import Plan
from aimgraph.planning.rows import Ribbon

HEIGHT, HEAD = 28.0, 30.0
"""Of a row, and of the row above the first, in pixels."""

RIBBON, LANE, LOOP, THICK = 84.0, 24.0, 16.0, 20.0
"""Length of a ribbon, width of a lane and of the loop of a carried state, and thickness of the largest ribbon."""

COLOURS = 6
"""Of values; they repeat."""


@dataclass(frozen=True)
class Lanes:
    """Where the memories of a plan stand.

    Attributes:
        carried: For each memory whether its state is carried to the next batch.
        first: For each memory the colour of its source; those of its updates follow.
    """

    carried: tuple[bool, ...]
    first: tuple[int, ...]

    @property
    def width(self) -> float:
        """Of the picture beside a row."""
        return RIBBON + LANE * len(self.carried) + (LOOP * sum(self.carried) if any(self.carried) else 2)

    def x(self, lane: int) -> float:
        """The middle of a lane."""
        return RIBBON + LANE * (lane + 0.5)

    def loop(self, lane: int) -> float:
        """Where the loop of a carried state runs."""
        return RIBBON + LANE * len(self.carried) + LOOP * (sum(self.carried[: lane + 1]) - 0.5)

    def colour(self, lane: int, value: int) -> int:
        """The colour of a value of a memory."""
        return (self.first[lane] + value) % COLOURS


def lanes_of(plan: Plan) -> Lanes:
    """Where the memories of a plan stand."""
    carried = tuple(memory.config.carry == "state" for memory in plan.memories)
    first = [sum(1 + len(memory.updates) for memory in plan.memories[:i]) for i in range(len(plan.memories))]
    return Lanes(carried, tuple(first))


def ribbon_points(lanes: Lanes, ribbon: Ribbon, place: int, count: int) -> list[tuple[float, float]]:
    """The outline of an arrow from a lane to a layer, in pixels from the upper left of the row's picture.

    Args:
        lanes: Of the plan.
        ribbon: What is read.
        place: Which of the row's ribbons it is; they share its height.
        count: How many there are.
    """
    band = HEIGHT / count
    y, half = band * (place + 0.5), max(0.7, ribbon.share * THICK / count / 2)
    right, tip = lanes.x(ribbon.lane), 2.0
    neck = tip + max(5.0, half * 1.1)
    head = half + 2.2 if half < band / 2 - 2 else half
    lower = [(right, y + half), (neck, y + half), (neck, y + head)]
    return [(right, y - half), (neck, y - half), (neck, y - head), (tip, y), *reversed(lower)]
