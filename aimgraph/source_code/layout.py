"""Lines of Python that fit into a width, broken as ruff breaks them."""

import re
from collections.abc import Iterator

WIDTH = 120
"""Of a line, as in this repository."""

MARK = "\ue000"
"""Stands between a line and its comment."""

_CLOSES = {")": "(", "]": "[", "}": "{"}


def wrapped(text: str) -> str:
    """A text whose long lines are broken at their last brackets."""
    return "\n".join(part for line in text.split("\n") for part in _broken(line))


_REPEATED = re.compile(r"(.+) (for _ in range\(\w+\))")


def _broken(line: str, ending: str = "") -> list[str]:
    """A line, or several where it is too long.

    Args:
        line: With its indentation.
        ending: A comma that comes behind it.
    """
    found = None if len(line) + len(ending) <= WIDTH else _last_brackets(line)
    if found is None:
        return [line + ending]
    opened, closed = found
    indent, content = " " * (len(line) - len(line.lstrip())), line[opened + 1 : closed]
    inner, items = f"{indent}    {content}", list(_items(content))
    literal = not (line[opened - 1].isalnum() or line[opened - 1] in "_)]")  # a tuple or list, and no call
    if len(inner) <= WIDTH and not inner.endswith(",") and not literal:
        middle = [inner]
    elif (times := _REPEATED.fullmatch(content)) and len(items) == 1:
        middle = [*_broken(f"{indent}    {times[1]}"), f"{indent}    {times[2]}"]
    else:
        middle = [part for item in items for part in _broken(f"{indent}    {item}", ",")]
    return [line[: opened + 1], *middle, indent + line[closed:] + ending]


def _last_brackets(line: str) -> tuple[int, int] | None:
    """Where the brackets open and close at which a line ends; None where it ends otherwise, or they are empty."""
    end = len(line.rstrip(":")) - 1
    if end < 0 or line[end] not in _CLOSES:
        return None
    depth = 0
    for place in range(end, -1, -1):
        depth += (line[place] in _CLOSES) - (line[place] in _CLOSES.values())
        if depth == 0:
            return None if place + 1 == end else (place, end)
    return None


def _items(text: str) -> Iterator[str]:
    """The arguments of a call."""
    depth, start = 0, 0
    for place, sign in enumerate(text):
        depth += (sign in _CLOSES.values()) - (sign in _CLOSES)
        if sign == "," and depth == 0:
            yield text[start:place].strip()
            start = place + 1
    if text[start:].strip():
        yield text[start:].strip()
