"""Where the members of a memory set live, and the graphs that name them."""

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from aimgraph.compiler.aim_paths import DEFAULT, SETS, aim_path, below_aim, is_added
from aimgraph.compiler.graph_data import plain_copy
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.emit.record import record_of
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


def member_in_use(aim: nn.Module, path: str) -> nn.Module:
    """The module that stands for ``aim.<path>`` in the set in use."""
    return aim.get_submodule(member(aim_path(path), aim, record_of(aim).chosen))


def graphs_of(aim: nn.Module, name: str) -> dict[str, fx.Graph]:
    """The default graphs with the names of a set, or of the samples' own values."""
    made = {}
    for key, graph in record_of(aim).graphs.items():
        kind, _, mode = key.partition(".")
        if kind != "aim":
            continue
        made[f"aim:{name}.{mode}"] = copied = plain_copy(graph)
        for node in copied.nodes:
            if node.op in ("call_module", "get_attr") and is_added(str(node.target)):
                node.target = member(str(node.target), aim, name)
    return made
