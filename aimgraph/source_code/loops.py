"""Calls of equal modules, one after the other, as loops."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from aimgraph.source_code.literals import RESERVED, is_name
from aimgraph.source_code.owners import NESTED
from aimgraph.source_code.regions import Region


@dataclass(frozen=True)
class Repeated:
    """Calls of modules that stand side by side in a list, one after the other.

    Attributes:
        container: Path of the list.
        slice: Which of its modules, as ``[1:]``.
        name: What to call one of them.
        items: The calls.
        values: What the first is given, and what each gives.
        others: What else each is given.
    """

    container: str
    slice: str
    name: str
    items: Sequence["fx.Node | Region"]
    values: Sequence[fx.Node]
    others: Sequence[fx.Node]


def repeated(root: nn.Module, caller: str, items: Sequence["fx.Node | Region"]) -> Repeated | None:
    """The calls that a row of items begins with, if there are several that make a loop.

    Args:
        root: Owner of the modules.
        caller: Path of the module that calls; a sequence takes no slices of itself.
        items: What it does from there on.
    """
    found, values, others = list["fx.Node | Region"](), list[fx.Node](), list[fx.Node]()
    container, start = "", 0
    for item in items:
        path, given, count = *called_with(item), len(found)
        owner, _, name = path.rpartition(".")
        held = root.get_submodule(owner) if given else nn.Module()
        if not found and given and owner != caller and (isinstance(held, nn.Sequential) or type(held) is nn.ModuleList):
            container, start, others, values = owner, _place(held, name), given[1:], [given[0]]
        elif not found or owner != container or given != [values[-1], *others] or _place(held, name) != start + count:
            break
        if len(outputs_of(item)) != 1:
            break
        found.append(item)
        values += outputs_of(item)
    if len(found) < _FEWEST or len(values) != len(found) + 1:
        return None
    stop, count = start + len(found), len(root.get_submodule(container)._modules)
    part = f"[{start or ''}:{stop if stop < count else ''}]" if stop - start < count else ""
    word = container.rpartition(".")[2]
    name = word[:-1] if word.endswith("s") and is_name(word[:-1]) and word[:-1] not in RESERVED else "block"
    return Repeated(container, part, name, found, values, others)


def _place(held: nn.Module, name: str) -> int:
    return list(held._modules).index(name)


_FEWEST = 3
"""Calls that make a loop."""


def called_with(item: "fx.Node | Region") -> tuple[str, list[fx.Node]]:
    """The path of the module that an item calls, and what it is given; nothing where it is something else."""
    if isinstance(item, Region):
        return item.path, item.inputs
    plain = item.op == "call_module" and not item.kwargs and NESTED not in item.meta
    args = list(item.args) if plain and all(isinstance(one, fx.Node) for one in item.args) else []
    return str(item.target), args  # type: ignore[return-value]


def outputs_of(item: "fx.Node | Region") -> list[fx.Node]:
    """The nodes that an item gives."""
    return item.outputs if isinstance(item, Region) else [item]
