"""A number of each read as a column, in execution order."""

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from aimgraph.planning.plan import Plan
from aimgraph.web.subject import Key
from aimgraph.web.svg import SMALL, drawing, element, words

HEIGHT, LEFT, BELOW, ABOVE = 120.0, 4.0, 18.0, 16.0


def columns(name: str, title: str, plan: Plan, numbers: Mapping[Key, float], colours: Mapping[Key, int]) -> Element:
    """A picture with one column for each read, the highest named.

    Args:
        name: Of its identifiers.
        title: What the numbers are.
        plan: Whose reads they are of.
        numbers: Of each read.
        colours: Number of the colour of each read.
    """
    keys = [(memory.name, read.name) for memory, read in plan.reads]
    values = [numbers.get(key, 0.0) for key in keys]
    width = max(3.0, min(22.0, 640.0 / max(1, len(keys))))
    highest = max(values, default=0.0) or 1.0
    whole = 2 * LEFT + max(240.0, width * len(keys))
    bottom = ABOVE + HEIGHT
    marks = [element("line", x1=LEFT, x2=whole - LEFT, y1=bottom, y2=bottom, class_="axis")]
    for place, (key, value) in enumerate(zip(keys, values, strict=True)):
        height = max(0.5, HEIGHT * value / highest)
        told = element(
            "title", f"{key[1]}: {value:.4g}" if len(plan.memories) == 1 else f"{key[1]} of {key[0]}: {value:.4g}"
        )
        bar = element(
            "rect", told, x=LEFT + width * place, y=bottom - height, width=width * 0.8, height=height,
            class_=f"v{colours[key]}", data_layer=key[1],
        )  # fmt: skip
        marks.append(bar)
    marks.append(words(f"{highest:.3g}", LEFT, ABOVE - 5, "currentColor", SMALL))
    marks.append(words("first layer", LEFT, bottom + 13, "currentColor", SMALL))
    marks.append(words("last", whole - LEFT, bottom + 13, "currentColor", SMALL, text_anchor="end"))
    top = sorted(zip(values, keys, strict=True), reverse=True)[:5]
    about = "; ".join(f"{key[1]}: {value:.4g}" for value, key in top)
    return drawing(name, title, f"The largest are {about}.", (whole, bottom + BELOW), *marks, class_="columns")
