"""What a forward decided while it was traced, checked at every call.

A graph has no branches: where the forward asked for the truth, the length or the number of something
that comes from its inputs, the graph holds what followed from the answer. A node asks again, and an
input that leads to another answer is refused instead of being computed in the wrong way.
"""

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from aimgraph.errors import ExampleInputError


class GuardError(ExampleInputError):
    """An input leads to another decision than the example inputs of the transform."""


QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "the truth": bool,
    "len()": len,
    "int()": int,
    "an index": operator.index,
    "float()": float,
    "the value": lambda value: value,
    "whether it is None": lambda value: value is None,
}
"""What can be asked of a value, by name."""


def guard(value: Any, question: str, answer: Any, what: str, place: str) -> None:
    """Refuse an input that leads to another answer than the example.

    Args:
        value: What the forward asks something of.
        question: One of `QUESTIONS`.
        answer: What the example gave.
        what: How `value` was computed.
        place: Where the forward asks.

    Raises:
        GuardError: The answer is another one.
    """
    now = QUESTIONS[question](value)
    if now != answer:
        raise GuardError(
            f"the forward asks for {question} of {what} at {place}, and was traced with inputs for which that is "
            f"{answer}; these make it {now}, for which there is no graph: transform the model with example inputs of "
            "these sizes and this structure, or move that code into a submodule without conv or linear layers"
        )


fx.node.has_side_effect(guard)


def constant(value: Any, name: str, expected: Any, fixed: bool) -> None:
    """Refuse an argument that is a constant of the graph, and has another value; or one that is missing.

    Args:
        value: What is given; an ellipsis stands for nothing.
        name: Of the argument.
        expected: The constant; an ellipsis where that is a default without source.
        fixed: Whether it is one.

    Raises:
        TypeError: The argument is missing.
        GuardError: It has another value.
    """
    if value is ... and not fixed:
        raise TypeError(f"forward() is missing the argument {name!r}")
    if not fixed or value is ...:
        return
    if value is not expected and (expected is ... or type(value) is not type(expected) or value != expected):
        told = "left at its default" if expected is ... else repr(expected)
        kind = "Tensor" if isinstance(value, Tensor) else type(value).__name__
        given = repr(value) if isinstance(value, bool | int | float | str | None) else f"a {kind}"
        raise GuardError(
            f"the argument {name!r} was {told} in the example inputs of the transform, and is a constant of its "
            f"result; this call gives {given}: transform the model with example inputs that give it"
        )


fx.node.has_side_effect(constant)


Kind = Any
"""A name, or (name, kinds of the items) for a list or tuple, or (name, key -> kind) for a dict; "" for anything."""


_CONTAINERS: dict[type, str] = {list: "list", tuple: "tuple", dict: "dict"}


def kind_of(value: Any) -> Kind:
    """The kind of a value. Numbers are of one kind; of other objects nothing is told.

    Classes stand in tuples here and below: torch 2.6 can't compile ``list | tuple``.
    """
    if isinstance(value, Tensor):
        return "Tensor"
    if value is None:
        return "None"
    if isinstance(value, (bool, str)):
        return ""  # a constant of the graph, which compares it
    if isinstance(value, (int, float)):
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
    now = kind_of(value) if not isinstance(value, (list, tuple, dict)) else _CONTAINERS.get(type(value), "")
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
