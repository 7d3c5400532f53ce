"""A plan as a table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from aimgraph.planning.reads import FORMS, MemoryPlan, Read
from aimgraph.planning.sites import Skipped
from aimgraph.planning.start import start_text


def print_table(
    console: Console,
    memories: Sequence[MemoryPlan],
    skipped: Sequence[Skipped],
    notes: Sequence[str],
    totals: Mapping[str, Any],
) -> None:
    """Print the sites of every memory, what is left alone and why, and the totals.

    Args:
        console: Where to print.
        memories: Of a plan.
        skipped: Layers and calls left alone.
        notes: Anything else a user should know.
        totals: As `Plan.totals` gives them.
    """
    for memory in memories:
        console.print(_memory_table(memory), _cost_table(memory))
        console.print(f"  {start_text(memory)}")
        for i, update in enumerate(memory.updates, start=1):
            console.print(f"  update {i}: {update.spot.where}, +{update.parameters:,} parameters")
        for item in memory.dropped:
            console.print(f"  dropped update at {item.path}: {item.reason}")
    if skipped:
        console.print(_skipped_table(skipped))
    for note in notes:
        console.print(f"note: {note}")
    for line in _totals(memories, totals):
        console.print(line)


def _memory_table(memory: MemoryPlan) -> Table:
    shape = " x ".join(map(str, memory.shape))
    title = f"memory {memory.name!r}: {shape} = {memory.size:,} values, source +{memory.source_parameters:,}"
    table = Table(title=title, title_justify="left")
    for column in ("site", "kind", "grid", "k", "+ parameters", "reads", "form", "remarks"):
        right = column in ("k", "+ parameters")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for read in memory.reads:
        grid = "x".join(map(str, read.grid)) or "-"
        numbers, remarks = (str(read.channels), f"{read.parameters:,}"), "; ".join(_remarks(read))
        table.add_row(read.name, read.kind, grid, *numbers, _values(read), read.lowering, remarks)
    return table


def _cost_table(memory: MemoryPlan) -> Table:
    title = f"{memory.name!r} in each form: added to a forward of these inputs; kept for its backward pass"
    table = Table(title=title, title_justify="left")
    table.add_column("site", overflow="fold")
    for form in FORMS:
        table.add_column(f"{form}, MFLOP", justify="right")
    for form in FORMS[:2]:
        table.add_column(f"{form}, kB kept", justify="right")
    for read in memory.reads:
        flops = [_short(cost.flops / 1e6) for cost in read.costs]
        table.add_row(read.name, *flops, *(_short(cost.saved / 1e3) for cost in read.costs[:2]))
    return table


def _short(number: float) -> str:
    """Three digits, more only before the point."""
    if number == 0:
        return "0"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.001 else "<.001"


def _values(read: Read) -> str:
    values = dict.fromkeys(call.value for call in read.calls)
    return ", ".join("source" if value == 0 else f"update {value}" for value in values)


def _remarks(read: Read) -> Iterator[str]:
    if not read.gradient:
        yield "gets no gradient"
    if read.opaque:
        yield "read inside a module that can't be traced"
    if read.note:
        yield read.note
    yield from dict.fromkeys(call.note for call in read.calls if call.note)
    nodes = {call.node for call in read.calls}
    if len(nodes) > 1:
        yield f"called {len(nodes)} times"
    yield from (f"another call does not read: {reason}" for reason in read.left)


def _skipped_table(skipped: Sequence[Skipped]) -> Table:
    table = Table(title="left as they are", title_justify="left")
    for column in ("layer", "kind", "reason"):
        table.add_column(column, overflow="fold")
    for item in skipped:
        table.add_row(item.path, item.kind, item.reason)
    return table


def _totals(memories: Sequence[MemoryPlan], totals: Mapping[str, Any]) -> list[str]:
    inputs = ", ".join(str(list(shape)) for shape in totals["inputs"])
    before, added = totals["base_parameters"], totals["added_parameters"]
    costs = [cost for memory in memories for read in memory.reads for cost in read.costs]
    sums = {form: [cost for cost in costs if cost.form == form] for form in FORMS}
    forms = [
        f"{form} {_short(sum(c.flops for c in found) / 1e6)} MFLOP, {_short(sum(c.saved for c in found) / 1e3)} kB"
        for form, found in sums.items()
    ]
    sites = totals["sites_read"], totals["layers_called"], totals["layers_present"]
    return [
        f"{totals['model']}, inputs {inputs}",
        f"sites read / called / layers present: {' / '.join(map(str, sites))}",
        f"parameters: {before:,} -> {before + added:,} (+{added:,}, +{totals['added_ratio']:.2%})",
        f"added to a forward, and kept for the backward pass: {'; '.join(forms)}",
    ]
