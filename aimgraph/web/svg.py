"""Elements of a picture."""

from typing import Any
from xml.etree import ElementTree

FONT, SMALL = 12.0, 11.0
"""Heights of text."""


def element(tag: str, *children: ElementTree.Element | str, **attributes: Any) -> ElementTree.Element:
    """An element of SVG.

    Args:
        tag: Its name.
        children: Elements inside, or its text.
        attributes: With `_` for `-`, and `class_` for `class`; those that are None are left out.
    """
    given = {
        name.rstrip("_").replace("_", "-"): _plain(value) for name, value in attributes.items() if value is not None
    }
    made = ElementTree.Element(tag, given)
    for child in children:
        if isinstance(child, str):
            made.text = (made.text or "") + child
        else:
            made.append(child)
    return made


def _plain(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def words(text: str, x: float, y: float, ink: str, size: float = SMALL, **attributes: Any) -> ElementTree.Element:
    """A line of text whose baseline is at `y`."""
    return element("text", text, x=x, y=y, fill=ink, font_size=size, **attributes)


def drawing(
    name: str, title: str, about: str, size: tuple[float, float], *children: ElementTree.Element, **attributes: Any
) -> ElementTree.Element:
    """A picture, with what a screen reader says of it.

    Args:
        name: Of its identifiers; no other picture of a page has it.
        title: What it is.
        about: What is to be seen in it.
        size: Its width and height.
        children: What is in it.
        attributes: More of the element's own.
    """
    width, height = size
    return element(
        "svg", element("title", title, id=f"{name}-title"), element("desc", about, id=f"{name}-desc"), *children,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_plain(width)} {_plain(height)}", width=width, height=height,
        role="img", aria_labelledby=f"{name}-title {name}-desc", font_family="system-ui, sans-serif", **attributes,
    )  # fmt: skip


def as_text(picture: ElementTree.Element) -> str:
    """The text of a picture."""
    return ElementTree.tostring(picture, encoding="unicode")


def width_of(text: str, size: float = SMALL) -> float:
    """About how wide a text is; no narrower than it gets in common fonts."""
    return size * sum(1.05 if ord(letter) > 0x2E7F else 0.6 for letter in text)


def shortened(text: str, room: float, size: float = SMALL) -> str:
    """A text, its middle left out where it is wider than there is room."""
    if width_of(text, size) <= room:
        return text
    kept = len(text) - 1
    while kept > 2 and width_of(text[: kept - kept // 2] + "…" + text[len(text) - kept // 2 :], size) > room:
        kept -= 1
    return text[: kept - kept // 2] + "…" + text[len(text) - kept // 2 :]
