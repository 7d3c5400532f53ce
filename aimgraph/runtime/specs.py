"""What a source, a read or an update block is made from: the sizes that it has to fit."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Factory: TypeAlias = Callable[[Any], Any]
"""Makes a part from the spec of its role."""

Role: TypeAlias = Literal["source", "read", "block"]

PARTS: dict[Role, dict[str, Factory]] = {"source": {}, "read": {}, "block": {}}
"""Role -> name -> what makes the part; each part's file adds its own."""


@dataclass(frozen=True)
class SourceSpec:
    """What a source is made from. Its forward takes nothing and gives the memory's initial value, [1, N].

    Attributes:
        shape: Of the memory, (rows, cols, channels) or (N,).
    """

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """N."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ReadSpec(SourceSpec):
    """What a read is made from. Its forward takes the memory, [B, N], and gives k channels on a grid, [B, *S, k].

    Every site has a read of its own. The view is resampled to the grid of the site's input where that is another one.

    Attributes:
        grid: S, the grid of the site's input; () for [B, F].
    """

    grid: tuple[int, ...]

    @property
    def positions(self) -> int:
        """P."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class BlockSpec(SourceSpec):
    """What an update block is made from. Its forward takes the memory, [B, N], and features, and gives values, [B, N].

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
