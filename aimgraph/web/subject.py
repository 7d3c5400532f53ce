"""What a report is about: a plan, and what is known besides it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from aimgraph.planning.plan import Plan

Key = tuple[str, str]
"""(memory, name of a read)."""


@dataclass(frozen=True)
class Held:
    """Values of a memory.

    Attributes:
        title: Which ones: ``source``, ``carried state``, ...
        shape: [rows, cols, channels], or [N].
        values: [N].
    """

    title: str
    shape: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True)
class Effect:
    """What it does to the outputs for the examples when one read is switched off.

    Attributes:
        largest: `max|d|`, d being the difference.
        ratio: `|d| / |y|`, Euclidean norms over all outputs.
        changed: The share of rows of an output [B, classes] whose largest entry is another; None of other outputs.
    """

    largest: float
    ratio: float
    changed: float | None


@dataclass(frozen=True)
class Subject:
    """A transformed part of a model, a model to be transformed, or a checkpoint.

    Attributes:
        path: Of the part; empty for the model itself.
        plan: What is, or would be, inserted where.
        shapes: Path of a layer, or ``(memory, read)`` -> shape of its weight, as far as that is known.
        biased: Paths of the layers with a bias.
        held: Memory -> its values, of several kinds; empty for a plan.
        norms: Euclidean norms of the read weights; empty for a plan.
        moved: Whether what was zero at the start is not zero any more; None for a plan, and for ``start="drawn"``.
        effects: What switching a read off does; empty without examples.
        remarks: What a reader has to know: the sets there are, what a file does not hold.
        whole: Whether the base was looked at; otherwise there is no graph and there are no costs.
    """

    path: str
    plan: Plan
    shapes: Mapping[str | Key, tuple[int, ...]] = field(default_factory=dict)
    biased: frozenset[str] = frozenset()
    held: Mapping[str, tuple[Held, ...]] = field(default_factory=dict)
    norms: Mapping[Key, float] = field(default_factory=dict)
    moved: bool | None = None
    effects: Mapping[Key, Effect] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    whole: bool = True

    @property
    def weights(self) -> Mapping[Key, float] | None:
        """Norms of the read weights, where there are any that are not zero: what pictures show. None: parameters."""
        return self.norms if any(self.norms.values()) else None
