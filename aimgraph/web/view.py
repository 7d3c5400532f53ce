"""What the templates show of a subject."""

import json
from typing import Any

from aimgraph.distance import real_numbers
from aimgraph.planning.lanes import Lanes, lanes_of
from aimgraph.planning.rows import Row, rows_of
from aimgraph.web.bars import columns
from aimgraph.web.cells import gutter_picture, head_picture, memory_picture
from aimgraph.web.details import Details, sizes
from aimgraph.web.formats import MINUS, count, number_of
from aimgraph.web.headline import config_text, headline
from aimgraph.web.heat import extent, heat_maps
from aimgraph.web.subject import Subject
from aimgraph.web.svg import as_text
from aimgraph.web.table import layers_table
from aimgraph.web.templating import markup


def small_view(subject: Subject, name: str = "part") -> dict[str, Any]:
    """The headline and the graph, as a fragment shows them.

    Args:
        subject: What it is of.
        name: Of its identifiers; no other part of a page has it.
    """
    rows, lanes = rows_of(subject.plan, subject.weights), lanes_of(subject.plan)
    shown = {"": True}
    for row in rows:
        shown[row.key] = shown[row.parent] and row.open
    measure = "norm" if subject.weights is not None else "parameters"
    drawn = [_row(subject, row, lanes, hidden=not shown[row.parent], last=row is rows[-1]) for row in rows]
    for place, one in enumerate(drawn):
        one["first"] = place == 0
    last = next(one for one in reversed(drawn) if not one["hidden"])
    last["memory"] = markup(as_text(memory_picture(rows[drawn.index(last)], lanes, last=True)))
    return headline(subject) | {
        "id": name,
        "rows": drawn,
        "head": markup(as_text(head_picture(lanes))),
        "legend": list(_legend(subject, lanes)),
        "measure": f"{measure} of its read weights" if measure == "norm" else "number of parameters",
        "columns": ("k on grid", f"{measure} of reads"),
        "written": any(memory.updates for memory in subject.plan.memories),
        "carried": any(lanes.carried),
    }


def whole_view(subject: Subject, name: str) -> dict[str, Any]:
    """All that a page shows of a subject."""
    rows, details = rows_of(subject.plan, subject.weights), Details(subject)
    keys = {path: row.key for row in reversed(rows) if row.kind in ("layer", "opaque") for path in row.layers}
    return small_view(subject, name) | {
        "notes": [*subject.remarks, *subject.plan.notes],
        "heats": _heats(subject),
        "bars": _bars(subject, name),
        "table": layers_table(subject, keys),
        "config": config_text(subject),
        "plan_json": _json(subject.plan.to_dict()),
        "details_json": _json({row.key: details.of(row) for row in rows}),
    }


def _json(data: Any) -> Any:
    """JSON that can stand in a script element: nothing in it ends the element, or begins a comment."""
    return markup(json.dumps(data, default=str).replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def _row(subject: Subject, row: Row, lanes: Lanes, *, hidden: bool, last: bool) -> dict[str, Any]:
    single = row.kind == "layer" and len(row.ribbons) == 1
    reads = [read for _, read in subject.plan.reads if single and read.site == row.layers[0]]
    fact = ""
    if reads and reads[0].channels:
        fact = f"{reads[0].channels} on {sizes(reads[0].grid)}" if reads[0].grid else f"{reads[0].channels}"
    return {
        "key": row.key,
        "parent": row.parent,
        "depth": row.depth,
        "kind": row.kind,
        "parts": row.parts,
        "open": row.open,
        "hidden": hidden,
        "label": row.label,
        "name": row.name if row.kind != "join" else "",
        "fact": fact if row.kind == "layer" else _group_fact(row),
        "number": _number(subject, sum(ribbon.weight for ribbon in row.ribbons)) if row.ribbons else "",
        "told": _told(subject, row),
        "find": f"{row.path} {row.name}".lower(),
        "gutter": markup(as_text(gutter_picture(row, lanes))),
        "memory": markup(as_text(memory_picture(row, lanes, last=last))),
    }


def _group_fact(row: Row) -> str:
    return number_of(len(row.layers), "layer") if row.kind in ("group", "opaque") and row.layers else ""


def _number(subject: Subject, weight: float) -> str:
    return count(weight) if subject.weights is None else f"{weight:.3g}"


def _told(subject: Subject, row: Row) -> str:
    """A row in words, for those who do not see it."""
    said = [row.path or row.label, row.name if row.kind != "join" else "branches meet"]
    if row.kind in ("group", "opaque"):
        said.append(number_of(len(row.layers), "layer"))
    what = "parameters" if subject.weights is None else "norm"
    for ribbon in row.ribbons:
        value = "the source" if ribbon.value == 0 else f"update {ribbon.value}"
        memory = subject.plan.memories[ribbon.lane].name
        said.append(f"reads {value} of {memory}, {what} {_number(subject, ribbon.weight)}")
    if row.update is not None:
        said.append(f"writes update {row.update[1]} of {subject.plan.memories[row.update[0]].name}")
    if row.skipped:
        said.append("does not read" if row.kind == "layer" else f"{row.skipped} do not read")
    return ", ".join(text for text in said if text)


def _legend(subject: Subject, lanes: Lanes) -> Any:
    for lane, memory in enumerate(subject.plan.memories):
        number = f"{lane + 1} " if len(subject.plan.memories) > 1 else ""
        yield {"colour": lanes.colour(lane, 0), "text": f"{number}{memory.name}: its source"}
        for update in range(1, len(memory.updates) + 1):
            yield {"colour": lanes.colour(lane, update), "text": f"{number}update {update}"}


def _heats(subject: Subject) -> list[dict[str, Any]]:
    found = []
    for memory in subject.plan.memories:
        shown = []
        for held in subject.held.get(memory.name, ()):
            low, high, deviation = extent(held)
            maps = heat_maps(held)
            strip = len(held.shape) == 3 and 1 in held.shape[:2] and held.shape[:2] != (1, 1)
            channels = held.shape[2] if len(held.shape) == 3 else 1
            most = max(abs(low), abs(high))
            told = f"{low:.3g} to {high:.3g}, root mean square {deviation:.3g}"
            told += f"; the first {len(maps)} of {channels} channels" if len(maps) < channels else ""
            odd = int((~real_numbers(held.values).isfinite()).sum())
            told += f"; {count(odd)} are not finite, and shown as zero" if odd else ""
            ends = {"low": f"{MINUS}{most:.2g}", "high": f"{most:.2g}"}
            shown.append(
                {"title": held.title, "told": told, "maps": [markup(as_text(one)) for one in maps], "strip": strip}
                | ends
            )
        if shown:
            found.append({"name": memory.name, "held": shown})
    return found


def _bars(subject: Subject, name: str) -> list[dict[str, Any]]:
    """Pictures of numbers by layer: norms of read weights, and what switching a read off does."""
    lanes = lanes_of(subject.plan)
    numbered = {memory.name: lane for lane, memory in enumerate(subject.plan.memories)}
    values = {(m.name, read.name): read.calls[0].value if read.calls else 0 for m, read in subject.plan.reads}
    colours = {key: lanes.colour(numbered[key[0]], value) for key, value in values.items()}
    effects = {key: 100 * effect.ratio for key, effect in subject.effects.items()}
    shown = []
    for kind, title, numbers in (
        ("norms", "Euclidean norm of each read weight", subject.weights or {}),
        (
            "effects",
            "How far the outputs for the examples move when one read is switched off, % of their norm",
            effects,
        ),
    ):
        if any(numbers.values()):
            picture = columns(f"{name}-{kind}", title, subject.plan, numbers, colours)
            shown.append({"title": title, "picture": markup(as_text(picture))})
    return shown
