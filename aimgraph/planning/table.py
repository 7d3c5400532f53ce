"""A plan in a terminal: a summary, a table that fits its width, and what is left alone.

Names are never broken. Where a table is wider than the terminal, each of its rows becomes a name with a line below.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from aimgraph.planning.alike import common_name, folded
from aimgraph.planning.reads import FORMS, MemoryPlan, Read
from aimgraph.planning.sites import Skipped
from aimgraph.planning.start import start_text
from aimgraph.planning.summary import summary

_UNBOUNDED = 10_000
"""Columns of a terminal in which every table fits."""

_MOST_REASONS = 6
"""How many reasons, and names for each remark, are shown unless all are asked for."""


def print_table(
    console: Console,
    memories: Sequence[MemoryPlan],
    skipped: Sequence[Skipped],
    notes: Sequence[str],
    totals: Mapping[str, Any],
    *,
    costs: bool = False,
    every_layer: bool = False,
) -> None:
    """Print a summary, the sites of every memory, and what is left alone and why.

    Args:
        console: Where to print; its width is kept.
        memories: Of a plan.
        skipped: Layers and calls left alone.
        notes: Anything else a user should know.
        totals: As `Plan.totals` gives them, with ``model`` and ``inputs``.
        costs: Whether to print what each form of a read costs.
        every_layer: Whether each layer has a row of its own, and each one left alone its reason.
    """
    for line in summary(memories, totals):
        say(console, line)
    for memory in memories:
        groups = [[read] for read in memory.reads] if every_layer else _alike(memory.reads)
        _print_memory(console, memory, groups, every_layer)
        if costs:
            say(
                console,
                f"\n{memory.name!r} in each form: added to a forward of these inputs; kept for its backward pass",
            )
            _print_fitting(console, _cost_table(groups))
    _print_skipped(console, skipped, every_layer)
    for note in notes:
        say(console, f"note: {note}")
    if costs:
        say(console, f"added to a forward, and kept for the backward pass: {_cost_totals(memories)}")
    sites = totals["sites_read"], totals["layers_called"], totals["layers_present"]
    say(console, f"sites read / called / layers present: {' / '.join(map(str, sites))}")


def say(console: Console, text: str, indent: int = 0) -> None:
    """Print text between words that are whole, its further lines two columns to the right.

    Args:
        console: Where.
        text: What.
        indent: Columns before its first line.
    """
    for paragraph in text.split("\n"):
        lines = [""]
        for word in paragraph.split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            start = indent + 2 * (len(lines) > 1)
            if lines[-1] and start + cell_len(longer) > console.width:
                lines.append(word)
            else:
                lines[-1] = longer
        for i, line in enumerate(lines):
            console.print(Text(" " * (indent + 2 * bool(i)) * bool(line) + line), soft_wrap=True)


def _alike(reads: Sequence[Read]) -> list[list[Read]]:
    """Reads that have the same cells in the table, by stage."""
    return folded(
        reads, lambda read: read.name, lambda read: (read.kind, read.grid, read.channels, _values(read), read.lowering)
    )


def _print_memory(console: Console, memory: MemoryPlan, groups: Sequence[Sequence[Read]], every_layer: bool) -> None:
    forms = list(dict.fromkeys(read.lowering for read in memory.reads))
    form = f", in {forms[0]} form" if len(forms) == 1 else ""
    say(console, f"\nwhat reads {memory.name!r}{form}; its source has {memory.source_parameters:,} parameters")
    _print_fitting(console, _memory_table(memory, groups, len(forms) > 1))
    for remark, names in _remarked(memory.reads).items():
        told = names if every_layer else [_label(found) for found in folded(names, str, lambda name: "")]
        more = "" if every_layer or len(told) <= _MOST_REASONS else f" and {len(told) - _MOST_REASONS} more"
        shown = told if every_layer else told[:_MOST_REASONS]
        say(console, f"{remark}: {', '.join(shown)}{more}")
    say(console, start_text(memory))
    for i, update in enumerate(memory.updates, start=1):
        say(console, f"update {i}: {update.spot.where}, +{update.parameters:,} parameters")
    for item in memory.dropped:
        say(console, f"dropped update at {item.path}: {item.reason}")


def _label(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{common_name(names)} ({len(names)} layers)"


def _memory_table(memory: MemoryPlan, groups: Sequence[Sequence[Read]], tells_forms: bool) -> Table:
    """Site, how many layers, kind, grid, k, parameters; which value and which form where these differ."""
    more = {"reads": bool(memory.updates), "form": tells_forms}
    extra = [column for column, wanted in more.items() if wanted]
    table = _table("site", "layers", "kind", "grid", "k", "+ parameters", *extra, right=("layers", "k", "+ parameters"))
    for group in groups:
        read, parameters = group[0], sum(read.parameters for read in group)
        cells = {"reads": _values(read), "form": read.lowering}
        grid, numbers = "x".join(map(str, read.grid)) or "-", (str(read.channels), f"{parameters:,}")
        name = common_name([read.name for read in group])
        _add_row(table, name, str(len(group)), read.kind, grid, *numbers, *(cells[column] for column in extra))
    return table


def _cost_table(groups: Sequence[Sequence[Read]]) -> Table:
    columns = [f"{form},\nMFLOP" for form in FORMS] + [f"{form},\nkB kept" for form in FORMS[:2]]
    table = _table("site", *columns, right=columns)
    for group in groups:
        costs = [[read.costs[i] for read in group] for i in range(len(FORMS))]
        flops = [_short(sum(cost.flops for cost in form) / 1e6) for form in costs]
        kept = [_short(sum(cost.saved for cost in form) / 1e3) for form in costs[:2]]
        _add_row(table, common_name([read.name for read in group]), *flops, *kept)
    return table


def _table(*columns: str, right: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))  # a name with brackets is no markup


def _print_fitting(console: Console, table: Table) -> None:
    """Print a table, or where it is wider than the terminal its rows one below the other."""
    unbounded = console.options.update(max_width=_UNBOUNDED)
    if Measurement.get(console, unbounded, table).maximum <= console.width:
        console.print(table)
        return
    headers = [str(column.header).replace("\n", " ") for column in table.columns]
    for name, *cells in zip(*(column.cells for column in table.columns), strict=True):
        say(console, str(name))
        say(console, ", ".join(f"{header} {cell}" for header, cell in zip(headers[1:], cells, strict=True)), indent=2)


def _short(number: float) -> str:
    """Three digits, more only before the point."""
    if number == 0:
        return "0"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.001 else "<.001"


def _values(read: Read) -> str:
    values = dict.fromkeys(call.value for call in read.calls)
    return ", ".join("source" if value == 0 else f"update {value}" for value in values)


def _remarked(reads: Sequence[Read]) -> dict[str, list[str]]:
    """Remark -> names of the reads that it is about."""
    found: dict[str, list[str]] = {}
    for read in reads:
        for remark in _remarks(read):
            found.setdefault(remark, []).append(read.name)
    return found


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


def _print_skipped(console: Console, skipped: Sequence[Skipped], every_layer: bool) -> None:
    """Count what is left alone by reason, or list it."""
    if not skipped:
        return
    how = "" if every_layer else " (--all, or every_layer=True, names each)"
    say(console, f"\nleft as they are: {len(skipped)}{how}")
    if every_layer:
        for item in skipped:
            say(console, f"{item.path} ({item.kind}): {item.reason}", indent=2)
        return
    counts = Counter(item.reason for item in skipped).most_common()
    for reason, count in counts[:_MOST_REASONS]:
        say(console, f"{reason}: {count}", indent=2)
    if rest := counts[_MOST_REASONS:]:
        say(console, f"{len(rest)} other reasons: {sum(count for _, count in rest)}", indent=2)


def _cost_totals(memories: Sequence[MemoryPlan]) -> str:
    costs = [cost for memory in memories for read in memory.reads for cost in read.costs]
    sums = {form: [cost for cost in costs if cost.form == form] for form in FORMS}
    return "; ".join(
        f"{form} {_short(sum(c.flops for c in found) / 1e6)} MFLOP, {_short(sum(c.saved for c in found) / 1e3)} kB"
        for form, found in sums.items()
    )
