"""Named tuples and dataclasses that a forward gives: a source has copies of their classes."""

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

from torch import fx

INDENT = "    "


def is_record(kind: object) -> bool:
    """Whether something is the class of a named tuple or of a dataclass."""
    if not isinstance(kind, type):
        return False
    return (issubclass(kind, tuple) and hasattr(kind, "_fields")) or dataclasses.is_dataclass(kind)


def fields_of(kind: Any) -> tuple[str, ...]:
    """Names of the fields of a record, in order."""
    return kind._fields if hasattr(kind, "_fields") else tuple(item.name for item in dataclasses.fields(kind))


def records(node: fx.Node) -> Iterator[Any]:
    """The classes of records that a node makes, or has among its arguments."""
    if is_record(node.target):
        yield node.target
    left: list[Any] = [*node.args, *node.kwargs.values()]
    while left:
        value = left.pop()
        if is_record(type(value)):
            yield type(value)
        if isinstance(value, tuple | list | dict):
            left += value.values() if isinstance(value, dict) else value


def written(kind: Any) -> str:
    """The class of a record as a source has it."""
    lines = "\n".join(f"{INDENT}{name}: Any = None" for name in fields_of(kind))
    if hasattr(kind, "_fields"):
        return f"class {kind.__name__}(NamedTuple):\n{lines.replace(' = None', '')}"
    return f"@dataclass\nclass {kind.__name__}:\n{lines}"


def without_detours(graph: fx.Graph) -> None:
    """Let what is taken out of a record be what was put into it."""
    for node in list(graph.nodes):
        if node.target not in (operator.getitem, getattr) or not isinstance(node.args[0], fx.Node):
            continue
        made, key = node.args[0], node.args[1]
        if made.op != "call_function" or not is_record(made.target):
            continue
        held = dict(zip(fields_of(made.target), made.args, strict=False)) | dict(made.kwargs)
        given = [value for value in held.values() if value is not None]
        value = held.get(key) if isinstance(key, str) else given[key] if isinstance(key, int) else None
        if isinstance(value, fx.Node):
            node.replace_all_uses_with(value)
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if not node.users and is_record(node.target):
            graph.erase_node(node)
