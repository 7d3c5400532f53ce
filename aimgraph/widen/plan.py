"""What widening a model would do: its channel groups, what each gets, and why some stay."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from aimgraph.widen.analysis import Group


@dataclass(frozen=True)
class GroupPlan:
    """A channel group: all dimensions of weights and features that must grow together.

    Attributes:
        layers: Paths of the layers that make its channels.
        channels: How many channels the first of them gives.
        step: How many of these can be added at a time.
        added: How many are added.
        members: (name, axis, positions that one step adds) of every parameter and buffer that grows along with them.
        by_copies: Why they can only be copied exactly, all of them; empty if single ones can grow.
        reason: Why they stay; empty if they can grow.
    """

    layers: tuple[str, ...]
    channels: int
    step: int
    added: int
    members: tuple[tuple[str, int, int], ...]
    by_copies: str = ""
    reason: str = ""


@dataclass(frozen=True)
class WidenPlan:
    """What `aimgraph.widen` does to a model. Prints as a table; `to_dict` for machines.

    Attributes:
        model: Class name of the model.
        groups: Its channel groups, those that stay included.
        parameters: Parameters of the model.
        widened: Parameters of the widened one.
        notes: Anything else a user should know.
    """

    model: str
    groups: tuple[GroupPlan, ...]
    parameters: int
    widened: int
    notes: tuple[str, ...] = ()

    @property
    def factor(self) -> float:
        """How many times the parameters."""
        return self.widened / self.parameters if self.parameters else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The plan in numbers and names that JSON can hold."""
        return asdict(self) | {"factor": self.factor}

    def __str__(self) -> str:
        """The plan as a table."""
        console = Console(file=io.StringIO(), width=140)
        console.print(_table([group for group in self.groups if not group.reason], "channel groups"))
        stay = [group for group in self.groups if group.reason]
        if stay:
            console.print(_staying(stay))
        for note in self.notes:
            console.print(f"note: {note}", highlight=False)
        console.print(
            f"{self.model}: {self.parameters:,} parameters, {self.widened:,} when widened ({self.factor:.3f} x)",
            highlight=False,
        )
        text = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines())


def _table(groups: Sequence[GroupPlan], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("made by", "channels", "+", "step", "tensors that grow along", "remarks"):
        right = name in ("channels", "+", "step")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for group in groups:
        numbers = (str(group.channels), str(group.added or "-"), str(group.step))
        remark = f"all or none, as copies: {group.by_copies}" if group.by_copies else ""
        table.add_row(_few(group.layers), *numbers, _few(_tensors(group)), remark)
    return table


def _staying(groups: Sequence[GroupPlan]) -> Table:
    table = Table(title="channels that stay as they are", title_justify="left")
    for name in ("made by", "channels", "reason"):
        table.add_column(name, justify="right" if name == "channels" else "left", overflow="fold")
    for group in groups:
        table.add_row(_few(group.layers), str(group.channels), group.reason)
    return table


def _tensors(group: GroupPlan) -> list[str]:
    return list(dict.fromkeys(name for name, _, _ in group.members))


def _few(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def group_plan(group: Group, added: int) -> GroupPlan:
    """What happens to a group that gets some steps more."""
    step = group.channels_in(group.layers[0])
    members = tuple((name, axis, count) for (name, axis), count in group.members.items())
    return GroupPlan(group.layers, group.channels, step, added * step, members, group.by_copies, group.reason)
