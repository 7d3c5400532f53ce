"""All layers of a subject as a table: its reads, and what does not read."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from aimgraph.planning.reads import MemoryPlan, Read
from aimgraph.web.details import remarks_of, sizes, value_text
from aimgraph.web.formats import DASH, brief, count, share_text
from aimgraph.web.subject import Subject


@dataclass(frozen=True)
class Cell:
    """A place of the table: what is shown, and what rows are sorted by; None to sort by the text."""

    text: str
    key: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of the table: its cells, and the key of the row of the graph that it is about, or nothing."""

    cells: list[Cell]
    row: str


@dataclass(frozen=True)
class Table:
    """A table: titles, those of columns that hold numbers, and rows."""

    columns: tuple[str, ...]
    numbers: frozenset[str]
    rows: list[Line]


_NUMBERS = ("k", "parameters", "MFLOP", "kept", "norm", "moves outputs by")


def layers_table(subject: Subject, rows: Mapping[str, str]) -> Table:
    """The table of a subject.

    Args:
        subject: What it is of.
        rows: Path of a layer -> key of its row in the graph.
    """
    columns = ["layer", "kind", "grid", "k", "parameters", "value"]
    columns += ["memory"] if len(subject.plan.memories) > 1 else []
    columns += ["form", "MFLOP", "kept"] if subject.whole else ["form"]
    columns += ["norm"] if subject.norms else []
    columns += ["moves outputs by"] if subject.effects else []
    order = {site.path: place for place, site in enumerate(subject.plan.sites)}
    reads = sorted(subject.plan.reads, key=lambda one: order.get(one[1].site, 0))
    found = list(_cells(subject, reads))
    columns.append("remarks")
    columns = [name for name in columns if any(cells[name].text for _, cells in found)]
    lines = [Line([cells[name] for name in columns], rows.get(site, "")) for site, cells in found]
    return Table(tuple(columns), frozenset(_NUMBERS), lines)


def _cells(subject: Subject, reads: list[tuple[MemoryPlan, Read]]) -> Iterator[tuple[str, dict[str, Cell]]]:
    for memory, read in reads:
        key = memory.name, read.name
        cost = next((one for one in read.costs if one.form == read.lowering), None)
        norm, effect = subject.norms.get(key), subject.effects.get(key)
        yield (
            read.site,
            {
                "layer": Cell(read.name),
                "kind": Cell(read.kind),
                "grid": Cell(sizes(read.grid) or DASH, float(math.prod(read.grid))),
                "k": _number(count(read.channels) if read.channels else DASH, read.channels),
                "parameters": _number(count(read.parameters) if read.parameters else DASH, read.parameters),
                "value": Cell(value_text(read)),
                "memory": Cell(memory.name),
                "form": Cell(read.lowering),
                "MFLOP": _number(
                    DASH if cost is None else f"{cost.flops / 1e6:,.3g}", None if cost is None else cost.flops
                ),
                "kept": _number(DASH if cost is None else brief(cost.saved, "B"), None if cost is None else cost.saved),
                "norm": _number(DASH if norm is None else f"{norm:.4g}", norm),
                "moves outputs by": _number(
                    DASH if effect is None else share_text(effect.ratio), None if effect is None else effect.ratio
                ),
                "remarks": Cell("; ".join(remarks_of(read))),
            },
        )
    yield from _left(subject)


def _left(subject: Subject) -> Iterator[tuple[str, dict[str, Cell]]]:
    """What does not read."""
    for item in subject.plan.skipped:
        empty = dict.fromkeys(_NUMBERS, _number(DASH, None))
        rest = {name: Cell(DASH) for name in ("grid", "value", "memory", "form")}
        told = {"layer": Cell(item.path), "kind": Cell(item.kind), "remarks": Cell(f"does not read: {item.reason}")}
        yield item.path, empty | rest | told


def _number(text: str, key: float | None) -> Cell:
    return Cell(text, -math.inf if key is None or not math.isfinite(key) else float(key))
