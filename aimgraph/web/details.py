"""What is shown of one row when a reader opens it, as data that the page's script writes into the panel."""

from collections.abc import Iterator
from typing import Any

from aimgraph.planning.reads import MemoryPlan, Read
from aimgraph.planning.rows import Row
from aimgraph.planning.sites import Site, SiteCall
from aimgraph.web.formats import DASH, brief, count, number_of, printable, share_text
from aimgraph.web.subject import Subject

KINDS = {
    "input": "input of the network",
    "output": "output of the network",
    "join": "branches meet here",
    "opaque": "a module that is kept as one call",
    "group": "layers in one module, or next to each other",
    "update": "an update: it writes features into the memory",
}


class Details:
    """Makes the details of rows.

    Args:
        subject: What they are of.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.sites = {site.path: site for site in subject.plan.sites}
        self.left = subject.plan.left
        self.reads: dict[str, list[tuple[MemoryPlan, Read]]] = {}
        for memory, read in subject.plan.reads:
            self.reads.setdefault(read.site, []).append((memory, read))

    def of(self, row: Row) -> dict[str, Any]:
        """``title``, ``about``, ``facts`` (name, text), ``reads`` (title, equation, facts) and ``remarks`` of a row."""
        found: dict[str, Any] = {"title": row.path or row.label, "about": row.name or KINDS.get(row.kind, "")}
        found["facts"] = list(self._facts(row))
        alone = row.kind == "layer"
        found["reads"] = [self._read(*one) for path in row.layers if alone for one in self.reads.get(path, ())]
        found["remarks"] = list(self._remarks(row))
        return found

    def _facts(self, row: Row) -> Iterator[tuple[str, str]]:
        if row.sources:
            more = f", and {len(row.sources) - 6} more" if len(row.sources) > 6 else ""
            yield "takes from", ", ".join(row.sources[:6]) + more
        if row.shape:
            yield "gives", sizes(row.shape)
        if row.kind in ("group", "opaque"):
            read = len(row.layers) - row.skipped
            yield "layers that read", f"{read} of {len(row.layers)}"
            yield from (
                (f"parameters of reads{self._of(ribbon.lane)}", self._sum(row, ribbon.lane)) for ribbon in row.ribbons
            )
        if row.kind == "layer" and (site := self.sites.get(row.layers[0])) is not None:
            channels = f"{site.channels[0]} in, {site.channels[1]} out"
            yield "channels", f"{channels}, {site.groups} groups" if site.groups > 1 else channels
            yield "calls", str(len({call.node for call in site.calls}))
        if row.update is not None:
            yield from self._update(*row.update)

    def _of(self, lane: int) -> str:
        memories = self.subject.plan.memories
        return "" if len(memories) == 1 else f" of {memories[lane].name}"

    def _sum(self, row: Row, lane: int) -> str:
        name = self.subject.plan.memories[lane].name
        reads = [read for path in row.layers for memory, read in self.reads.get(path, ()) if memory.name == name]
        return count(sum(read.parameters for read in reads))

    def _update(self, lane: int, number: int) -> Iterator[tuple[str, str]]:
        memory = self.subject.plan.memories[lane]
        update = memory.updates[number - 1]
        spot = update.spot
        yield "memory", memory.name
        yield "features", f"{number_of(spot.features, 'channel')} on {sizes(spot.grid) or 'no grid'}"
        yield (
            "writes",
            f"{memory.config.mode}, {'their mean over the batch' if memory.config.pool else 'a value per sample'}",
        )
        yield "parameters", count(update.parameters)

    def _read(self, memory: MemoryPlan, read: Read) -> dict[str, Any]:
        site = self.sites.get(read.site)
        key = memory.name, read.name
        facts = [
            ("k, memory channels", str(read.channels) if read.channels else DASH),
            ("grid", sizes(read.grid) or "none"),
        ]
        if read.parameters:
            facts.append(("parameters of Wm", count(read.parameters)))
        facts += [("reads", value_text(read)), ("form", read.lowering)]
        facts += [(f"operations, {cost.form}", brief(cost.flops, "FLOP")) for cost in read.costs]
        facts += [(f"kept for backward, {cost.form}", brief(cost.saved, "B")) for cost in read.costs[:2]]
        if key in self.subject.norms:
            facts.append(("norm of Wm", f"{self.subject.norms[key]:.4g}"))
        if (effect := self.subject.effects.get(key)) is not None:
            facts.append(("without it, outputs move by", share_text(effect.ratio)))
            facts.append(("without it, largest difference", f"{effect.largest:.3g}"))
            if effect.changed is not None:
                facts.append(("without it, other answers", share_text(effect.changed)))
        shapes = [] if site is None else self._shapes(memory, read, site)
        return {
            "title": memory.name,
            "equation": equation(site.kind if site is not None else "layer", self._biased(read.site)),
            "shapes": shapes,
            "facts": facts,
        }

    def _biased(self, path: str) -> bool:
        """Whether a layer has a bias, or may have one."""
        return path in self.subject.biased or path not in self.subject.shapes

    def _shapes(self, memory: MemoryPlan, read: Read, site: Site) -> list[tuple[str, str]]:
        """Name of each tensor of the equation, and its shape as far as it is known."""
        call = next((one for one in site.calls if one.node == read.calls[0].node), site.calls[0])
        known = self.subject.shapes
        found = [("x", sizes(_of_batch(call, call.shape)))]
        if read.site in known:
            found.append(("Wx", sizes(known[read.site])))
        if read.site in self.subject.biased:
            found.append(("b", str(site.channels[1])))
        found.append(("m", sizes(_view(call, read, per_sample=bool(read.calls[0].value) and not memory.config.pool))))
        key = memory.name, read.name
        whole = sizes(known[key]) if key in known else f"{count(read.parameters)} = {read.channels} x {site.taps}"
        return [*found, ("Wm", whole), ("y", sizes(_of_batch(call, call.output)))]

    def _remarks(self, row: Row) -> Iterator[str]:
        alone = row.kind == "layer"
        for path in row.layers if alone else ():
            if path not in self.reads:
                yield f"Does not read: {self.left.get(path, 'it is no site of this memory')}."
            for _, read in self.reads.get(path, ()):
                yield from remarks_of(read)
        names = row.path.split(".")
        around = [".".join(names[:end]) for end in range(1, len(names) + 1)]
        yield from (f"{path}: {self.left[path]}" for path in around if path in self.left and path not in row.layers)
        if row.kind == "opaque":
            yield "It can't be traced, so the graph calls it as a whole. The layers in it read inside."
        if row.kind == "group":
            yield from (f"{path}: {self.left[path]}" for path in row.layers if path in self.left)


def remarks_of(read: Read) -> Iterator[str]:
    """What is special about a read."""
    if not read.gradient:
        yield "It gets no gradient."
    if read.opaque:
        yield f"It is read inside {read.opaque}, which can't be traced."
    if read.note:
        yield read.note
    yield from dict.fromkeys(call.note for call in read.calls if call.note)
    yield from (f"Another call does not read: {reason}" for reason in read.left)


def equation(kind: str, biased: bool) -> str:
    """`y = layer(x; Wx, b) + layer(m; Wm)` with the layer's name."""
    name = printable(kind)
    return f"y = {name}(x; Wx{', b' if biased else ''}) + {name}(m; Wm)"


def sizes(shape: tuple[int, ...]) -> str:
    """``B x 64 x 112 x 112``; `-r` is r times the batch size B, and 0 another size that changes with it."""
    return " x ".join(str(size) if size > 0 else f"{-size}B".removeprefix("1") if size else "?" for size in shape)


def value_text(read: Read) -> str:
    """Which values of the memory its calls read."""
    values = dict.fromkeys(call.value for call in read.calls)
    return ", ".join("source" if value == 0 else f"update {value}" for value in values) or "source"


def _of_batch(call: SiteCall, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a call's input or output with the batch size as what it is."""
    axis = call.batch_axis
    if axis is None or call.grouped_batch or not call.batch_ratio or axis >= len(shape):
        return shape
    return (*shape[:axis], -call.batch_ratio if call.batch_ratio > 0 else 0, *shape[axis + 1 :])


def _view(call: SiteCall, read: Read, per_sample: bool) -> tuple[int, ...]:
    """The shape of the memory as the site sees it."""
    shape = list(_of_batch(call, call.shape))
    if 0 <= call.channel_axis < len(shape):
        shape[call.channel_axis] = read.channels
    if call.batch_axis is not None and not per_sample:
        shape[call.batch_axis] = 1
    return tuple(shape)
