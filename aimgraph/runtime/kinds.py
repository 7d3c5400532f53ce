"""What kinds of things a forward is given: it decides by these without asking anything that a graph could ask again.

``x is None``, ``isinstance(x, list)`` and the like have one answer in a graph, that for the example inputs.
"""

from typing import Any

from torch import Tensor

Kind = Any
"""A name, or (name, kinds of the items) for a list or tuple, or (name, key -> kind) for a dict; "" for anything."""

_CONTAINERS: dict[type, str] = {list: "list", tuple: "tuple", dict: "dict"}


def kind_of(value: Any) -> Kind:
    """The kind of a value. Numbers are of one kind; of other objects nothing is told."""
    if isinstance(value, Tensor):
        return "Tensor"
    if value is None:
        return "None"
    if isinstance(value, bool | str):
        return ""  # a constant of the graph, which compares it
    if isinstance(value, int | float):
        return "number"
    name = _CONTAINERS.get(type(value), "")
    if name == "dict":
        return name, {key: kind_of(item) for key, item in value.items()}
    return (name, tuple(kind_of(item) for item in value)) if name else ""


def argument_kind(value: Any) -> Kind:
    """The kind of an argument: one that is None is a constant of the graph, which compares it."""
    return "" if value is None else kind_of(value)


def other_kind(value: Any, kind: Kind) -> tuple[str, str] | None:
    """What a value is, and what it should be, where it is of another kind; of items, those that both have count.

    Args:
        value: What is given.
        kind: Of `kind_of`.
    """
    name = kind if isinstance(kind, str) else kind[0]
    if not name:
        return None
    now = kind_of(value) if not isinstance(value, list | tuple | dict) else _CONTAINERS.get(type(value), "")
    if now != name:
        return _told(value, now), name
    if isinstance(kind, str):
        return None
    inner = kind[1]
    pairs = (
        [(value[key], inner[key]) for key in inner if key in value]
        if name == "dict"
        else zip(value, inner, strict=False)
    )
    return next((found for item, one in pairs if (found := other_kind(item, one)) is not None), None)


def _told(value: Any, now: str) -> str:
    return "nothing" if value is ... else now or type(value).__name__
