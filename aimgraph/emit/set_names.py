"""Where the members of a memory set live."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from aimgraph.compiler.aim_paths import DEFAULT, SETS, below_aim
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.errors import ConfigError


def check_known(record: Any, names: Iterable[str]) -> None:
    """Refuse names of sets that there are not."""
    known = [DEFAULT, *record.sets]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no memory set {name!r}; the sets are {known}")


def member(path: str, aim: nn.Module, name: str) -> str:
    """What stands for ``aim.<...>`` in a set: its own, or the default one that it shares."""
    parent, _, last = f"{SETS}.{name}.{below_aim(path)}".rpartition(".")
    there = submodule_at(aim, parent) if name != DEFAULT else None
    held = (there._modules, there._parameters, there._buffers) if there is not None else ()
    return f"{parent}.{last}" if any(last in members for members in held) else path
