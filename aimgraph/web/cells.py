"""The pictures within a row: its lines of the graph, and what it reads and writes beside the lanes of the memories."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from aimgraph.planning.gutter import Stroke
from aimgraph.planning.lanes import HEAD, HEIGHT, Lanes, ribbon_points
from aimgraph.planning.rows import Ribbon, Row
from aimgraph.web.svg import element


def gutter_picture(row: Row, lanes: Lanes) -> Element:
    """The lines of the graph beside a row, and its mark."""
    x, middle = row.lines.x, HEIGHT / 2
    parts = [element("path", d=path_of(row.lines.always), class_="e")]
    if row.lines.opened:
        parts.append(element("path", d=path_of(row.lines.opened), class_="e o"))
    parts += _mark(row, lanes, x, middle)
    width = x + 9
    return element(
        "svg", *parts, width=width, height=HEIGHT, viewBox=f"0 0 {width:g} {HEIGHT:g}", class_="g", aria_hidden="true"
    )


def path_of(strokes: Sequence[Stroke]) -> str:
    """Strokes as the path of an element."""
    return "".join(_stroke(stroke) for stroke in strokes)


def _stroke(stroke: Stroke) -> str:
    points = [f"{x:g} {round(HEIGHT * y, 1):g}" for x, y in stroke]
    return f"M{points[0]}{'L' if len(points) == 2 else 'C'}{' '.join(points[1:])}"


def _mark(row: Row, lanes: Lanes, x: float, y: float) -> list[Element]:
    ink = f"v{lanes.colour(row.ribbons[0].lane, row.ribbons[0].value)}" if row.ribbons else "none"
    if row.kind in ("group", "opaque"):
        square = element("rect", x=x - 5.5, y=y - 5.5, width=11, height=11, rx=3, class_=f"n {ink} {row.kind}")
        bars = [element("path", d=f"M{x - 2.6:g} {y:g}h5.2", class_="sign")]
        bars.append(element("path", d=f"M{x:g} {y - 2.6:g}v5.2", class_="sign c"))
        return [square, *(bars if row.parts else [])]
    if row.kind == "join":
        return [element("circle", cx=x, cy=y, r=3, class_="n join")]
    if row.kind == "update":
        assert row.update is not None
        return [element("path", d=f"M{x - 5:g} {y:g}l5 -5l5 5l-5 5z", class_=f"n v{lanes.colour(*row.update)}")]
    if row.kind in ("input", "output"):
        return [element("path", d=f"M{x - 4.5:g} {y - 4:g}h9l-4.5 8z", class_="n end")]
    return [element("circle", cx=x, cy=y, r=4.5, class_=f"n {ink}")]


def memory_picture(row: Row, lanes: Lanes, last: bool) -> Element:
    """The lanes beside a row, with what it reads and writes."""
    parts: list[Element] = []
    for lane, (before, after) in enumerate(row.values):
        parts += _lane(lanes, lane, before, after, opens=row.parts)
        if lanes.carried[lane]:
            parts.append(_loop(lanes, lane, after, last))
    for place, ribbon in enumerate(row.ribbons):
        made = _ribbon(lanes, ribbon, place, len(row.ribbons))
        made.set("class", f"{made.get('class')}{' c' if row.parts else ''}")
        parts.append(made)
    if row.update is not None:
        parts += _write(lanes, *row.update)
    return _beside(lanes, HEIGHT, parts)


def head_picture(lanes: Lanes) -> Element:
    """The sources on top of the lanes, to which carried states come back."""
    parts: list[Element] = []
    for lane, carried in enumerate(lanes.carried):
        x, ink = lanes.x(lane), lanes.colour(lane, 0)
        parts.append(element("path", d=f"M{x:g} 16V{HEAD:g}", class_=f"lane s{ink}"))
        if carried:
            loop = lanes.loop(lane)
            parts.append(
                element(
                    "path",
                    d=f"M{loop:g} {HEAD:g}V13Q{loop:g} 4 {(loop + x) / 2:g} 4Q{x + 2:g} 3 {x + 2:g} 7",
                    class_="loop",
                )
            )
        parts.append(element("circle", cx=x, cy=14, r=7, class_=f"n v{ink}"))
        if len(lanes.carried) > 1:
            parts.append(
                element("text", str(lane + 1), x=x, y=17.5, class_="number", text_anchor="middle", font_size=10)
            )
    return _beside(lanes, HEAD, parts)


def _beside(lanes: Lanes, height: float, parts: list[Element]) -> Element:
    width = lanes.width
    return element(
        "svg", *parts, width=width, height=height, viewBox=f"0 0 {width:g} {height:g}", class_="m", aria_hidden="true"
    )


def _lane(lanes: Lanes, lane: int, before: int, after: int, *, opens: bool) -> list[Element]:
    x, start, end = lanes.x(lane), lanes.colour(lane, before), lanes.colour(lane, after)
    if before == after:
        return [element("path", d=f"M{x:g} 0V{HEIGHT:g}", class_=f"lane s{start}")]
    halves = [element("path", d=f"M{x:g} 0V{HEIGHT / 2:g}", class_=f"lane s{start}")]
    halves.append(element("path", d=f"M{x:g} {HEIGHT / 2:g}V{HEIGHT:g}", class_=f"lane s{end}{' c' if opens else ''}"))
    if opens:
        halves.append(element("path", d=f"M{x:g} {HEIGHT / 2:g}V{HEIGHT:g}", class_=f"lane s{start} o"))
        halves.append(element("circle", cx=x, cy=HEIGHT / 2, r=4, class_=f"n v{end} c"))
    return halves


def _loop(lanes: Lanes, lane: int, after: int, last: bool) -> Element:
    loop, x = lanes.loop(lane), lanes.x(lane)
    if not last:
        return element("path", d=f"M{loop:g} 0V{HEIGHT:g}", class_="loop")
    bend = f"M{x:g} {HEIGHT - 8:g}Q{x:g} {HEIGHT - 2:g} {(x + loop) / 2:g} {HEIGHT - 2:g}T{loop:g} {HEIGHT - 12:g}V0"
    return element("path", d=bend, class_="loop")


def _ribbon(lanes: Lanes, ribbon: Ribbon, place: int, count: int) -> Element:
    """An arrow from a lane to the layer."""
    points = " ".join(f"{x:.1f},{y:.2f}" for x, y in ribbon_points(lanes, ribbon, place, count))
    return element("polygon", points=points, class_=f"r v{lanes.colour(ribbon.lane, ribbon.value)}")


def _write(lanes: Lanes, lane: int, number: int) -> list[Element]:
    """An arrow into the lane, where its value changes."""
    x, y, ink = lanes.x(lane), HEIGHT / 2, lanes.colour(lane, number)
    line = element("path", d=f"M2 {y:g}H{x - 11:g}", class_=f"w s{ink}")
    head = element("path", d=f"M{x - 13:g} {y - 4.5:g}l9 4.5l-9 4.5z", class_=f"v{ink}")
    return [line, head, element("circle", cx=x, cy=y, r=5.5, class_=f"n v{ink}")]
