"""What will be inserted where: the plan, as data. Nothing here touches a graph."""

import io
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

from rich.console import Console

from aimgraph.planning.flow import Step
from aimgraph.planning.kept import Kept
from aimgraph.planning.reads import MemoryPlan, Read, ReadCall
from aimgraph.planning.shown import shown_as_html
from aimgraph.planning.sites import Site, Skipped, UpdateSpot, published
from aimgraph.planning.table import print_table, say

WIDTH = 80
"""Columns of a plan as text, where none are asked for."""

PlannedCall: TypeAlias = tuple[str, Read, ReadCall]
"""What a call reads: the memory's name, its read weight, and which value in which layout."""


@dataclass(frozen=True)
class Plan:
    """What `aimgraph.transform` does to a base. Prints as a table; `to_dict` for machines.

    Attributes:
        model: Class name of the base.
        inputs: Shapes of the example inputs.
        base_parameters: Parameters of the base.
        layers: Convolutions and linear layers present in the base.
        called: Names of the layers and functions that the base's own forward calls.
        sites: Layers that can read.
        skipped: Layers and functions left alone, with the reason. What reads at some of its calls is a site.
        spots: Where updates could be written, before the dead ones are dropped.
        memories: One plan per memory.
        notes: Anything else a user should know.
        kept: What training keeps for the backward pass; `aimgraph.plan` counts it.
        flow: The base's graph, as far as pictures show it; `to_dict` leaves it out.
    """

    model: str
    inputs: tuple[tuple[int, ...], ...]
    base_parameters: int
    layers: int
    called: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    spots: tuple[UpdateSpot, ...] = ()
    memories: tuple[MemoryPlan, ...] = ()
    notes: tuple[str, ...] = ()
    kept: Kept | None = None
    flow: tuple[Step, ...] = field(default=(), repr=False, compare=False)

    @property
    def reads(self) -> tuple[tuple[MemoryPlan, Read], ...]:
        """Every read weight with its memory, in the order of the memories."""
        return tuple((memory, read) for memory in self.memories for read in memory.reads)

    def calls_in(self, graph: str) -> dict[str, list[PlannedCall]]:
        """Node of a graph -> what it reads, in the order of the memories."""
        found: dict[str, list[PlannedCall]] = {}
        for memory, read in self.reads:
            for call in read.calls:
                if call.graph == graph:
                    found.setdefault(call.node, []).append((memory.name, read, call))
        return found

    @property
    def added_parameters(self) -> int:
        """Parameters that all memories add."""
        return sum(memory.parameters for memory in self.memories)

    @property
    def sites_read(self) -> int:
        """How many distinct layers read some memory."""
        return len({read.site for _, read in self.reads})

    @property
    def fallback(self) -> int:
        """How many sites are inside a module that can't be traced."""
        return sum(bool(site.opaque) for site in self.sites)

    @property
    def covered(self) -> int:
        """How many of the layers and functions that the base calls read at every call."""
        return sum(name not in self.left for name in self.called)

    @property
    def left(self) -> dict[str, str]:
        """Names of layers and functions of which no call reads, or not every call -> why."""
        partly = {site.path: "; ".join(site.left) for site in self.sites if site.left}
        return partly | {item.path: item.reason for item in self.skipped}

    @property
    def totals(self) -> dict[str, Any]:
        """What the plan comes to: parameters, layers and sites."""
        return {
            "base_parameters": self.base_parameters,
            "added_parameters": self.added_parameters,
            "added_ratio": self.added_parameters / max(1, self.base_parameters),
            "layers_present": self.layers,
            "layers_called": len(self.called),
            "layers_covered": self.covered,
            "sites_read": self.sites_read,
        }

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready data, with totals."""
        data: dict[str, Any] = published(asdict(replace(self, memories=(), flow=())))
        del data["flow"]
        if self.kept is None:
            del data["kept"]
        data["memories"] = [memory.to_dict() for memory in self.memories]
        return data | {"totals": self.totals}

    def print(self, console: Console | None = None, *, costs: bool = False, every_layer: bool = False) -> None:
        """Print the plan: a summary, a table that fits the console's width, and what is left alone.

        Args:
            console: Where to print; standard output by default.
            costs: Whether to print what every form of a read costs, too.
            every_layer: Whether every layer has a row of its own. By default layers of one stage that are alike share
                a row, and layers that are left alone are counted by their reason.
        """
        console = console or Console()
        totals = self.totals | {"model": self.model, "inputs": self.inputs}
        given = (self.memories, self.skipped, self.notes, totals)
        print_table(console, *given, costs=costs, every_layer=every_layer)
        if self.kept is not None:
            say(console, str(self.kept))

    def text(self, width: int = WIDTH, *, costs: bool = False, every_layer: bool = False) -> str:
        """What `print` prints, as text.

        Args:
            width: Columns to fit into. A name that is longer is not broken.
            costs: As for `print`.
            every_layer: As for `print`.
        """
        text = io.StringIO()
        console = Console(width=width, file=text, color_system=None, force_terminal=False, emoji=False)
        self.print(console, costs=costs, every_layer=every_layer)
        return text.getvalue().rstrip("\n")

    def _repr_html_(self) -> str | None:
        """A picture of the plan, for notebooks."""
        return shown_as_html(self)

    def __str__(self) -> str:
        """The plan as a table, 80 columns wide."""
        return self.text()

    def __repr__(self) -> str:
        """The plan in a line; ``print`` shows it as a table."""
        memories = ", ".join(f"{memory.name!r} {'x'.join(map(str, memory.shape))}" for memory in self.memories)
        read = f"read at {self.sites_read} of {len(self.called)} layers, +{self.added_parameters:,} parameters"
        return f"<Plan of {self.model}: {f'memory {memories}, {read}' if memories else 'no memory'}>"
