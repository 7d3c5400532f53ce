"""What a source, a read or an update block is made from: the sizes that it has to fit."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Factory: TypeAlias = Callable[[Any], Any]
"""Makes a part from the spec of its role."""

Role: TypeAlias = Literal["source", "read", "block"]

PARTS: dict[Role, dict[str, Factory]] = {"source": {}, "read": {}, "block": {}}
"""Role -> name -> what makes the part; each part's file adds its own."""


@dataclass(frozen=True)
class MemorySpec:
    """The memory that a part belongs to.

    Attributes:
        shape: Of the memory, (rows, cols, channels) or (N,).
    """

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """N."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class SourceSpec(MemorySpec):
    """What a source is made from. Its forward takes nothing and gives the memory's initial value, [1, N].

    A source with a method ``zero_()`` works with ``start="zero_values"``: after it, the forward gives zeros.

    Attributes:
        deviation: The standard deviation that drawn values are asked to have.
    """

    deviation: float = field(default=1.0, repr=False)


@dataclass(frozen=True)
class ReadSpec(MemorySpec):
    """What a read is made from. Its forward takes the memory, [B, N], and gives k channels on a grid, [B, *S, k].

    Every site has a read of its own. The view is resampled to the grid of the site's input where that is another one.
    With ``start="zero_values"``, a read shows a memory of zeros as zeros.

    Attributes:
        grid: S, the grid of the site's input; () for [B, F].
    """

    grid: tuple[int, ...]

    @property
    def positions(self) -> int:
        """P."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class BlockSpec(MemorySpec):
    """What an update block is made from. Its forward takes the memory, [B, N], and features, and gives values, [B, N].

    A block with a method ``zero_()`` works with ``start="zero_values"``: after it, a memory of zeros stays zero,
    whatever the features.

    Attributes:
        features: C, channels of the features, [B, C, *S].
        grid: S as planned, which may be another one at a call; () for [B, F].
        gated: Whether the result is mixed with the memory through a learned gate.
        read: Makes a read of the same kind as the memory's sites have, from a `ReadSpec`.
    """

    features: int
    grid: tuple[int, ...]
    gated: bool
    read: Factory

    @property
    def rank(self) -> int:
        """Dimensions of the grid."""
        return len(self.grid)
