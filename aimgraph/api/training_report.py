"""What `aimgraph.check_training` found, as data and as a table."""

import io
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

Status = Literal["learns", "waits a step", "never", "not in use"]


@dataclass(frozen=True)
class TensorReport:
    """One parameter of a memory.

    Attributes:
        name: In the model.
        shape: Its shape.
        status: ``learns``: it has a gradient at the first step; ``waits a step``: at a later one, when what it is
            multiplied with is no longer zero; ``never``: at none of them; ``not in use``: it belongs to another
            memory set.
        step: The first step at which its gradient is not zero, from 1; None if there is none.
        gradient: Euclidean norm of its gradient at that step.
        reason: Why it never learns; empty if it does.
    """

    name: str
    shape: tuple[int, ...]
    status: Status
    step: int | None = None
    gradient: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class TrainingReport:
    """What becomes of each parameter of the memories. Prints as a table; `to_dict` for machines.

    Attributes:
        tensors: In the order of the model.
        steps: How many steps were taken at most.
    """

    tensors: tuple[TensorReport, ...]
    steps: int

    @property
    def learns(self) -> tuple[TensorReport, ...]:
        """Those with a gradient at the first step."""
        return self._of("learns")

    @property
    def waits(self) -> tuple[TensorReport, ...]:
        """Those with a gradient at a later step."""
        return self._of("waits a step")

    @property
    def never(self) -> tuple[TensorReport, ...]:
        """Those without a gradient at any step, with the reason."""
        return self._of("never")

    @property
    def not_in_use(self) -> tuple[TensorReport, ...]:
        """Those of memory sets that are not in use."""
        return self._of("not in use")

    def _of(self, status: Status) -> tuple[TensorReport, ...]:
        return tuple(one for one in self.tensors if one.status == status)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print the report as a table."""
        table = Table(title="gradients of the memory", title_justify="left")
        for column in ("tensor", "shape", "status", "|gradient|", "reason"):
            table.add_column(column, justify="right" if column == "|gradient|" else "left", overflow="fold")
        for one in self.tensors:
            status = f"step {one.step}: waits" if one.status == "waits a step" else one.status
            shape = "x".join(map(str, one.shape)) or "1"
            table.add_row(one.name, shape, status, f"{one.gradient:.3g}" if one.step else "", one.reason)
        console.print(table)
        counts = {"learn": self.learns, "wait a step": self.waits, "never learn": self.never}
        told = ", ".join(f"{len(found)} {what}" for what, found in counts.items())
        console.print(f"{told}, {len(self.not_in_use)} not in use; looked at over {self.steps} steps")

    def __str__(self) -> str:
        """The report as a table, 120 columns wide."""
        text = io.StringIO()
        self.print(Console(width=120, file=text, color_system=None, force_terminal=False))
        return text.getvalue().rstrip("\n")
