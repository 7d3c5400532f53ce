"""The modules that a memory adds to a network, in a tree that names them by what they do."""

from collections.abc import Callable
from itertools import chain, count
from typing import Any, TypeVar

from torch import nn

from aimgraph.reproducible import is_inexact

M = TypeVar("M", bound=nn.Module)


class Memory(nn.Module):
    """``aim.<name>``: ``source``, ``reads.<site path>``, ``updates.<i>`` and, if carried, ``carry``.

    Where the read is a module, ``views.<i>`` is that of the i-th read weight.

    Args:
        source: Yields the initial value, [1, N].
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.reads = nn.Module()
        self.views = nn.Module()
        self.updates = nn.ModuleList()


def moved_like(module: M, like: Any) -> M:
    """`module` on the device and in the dtype of a weight; its own ``to`` would warn of a complex one."""
    module._apply(lambda one: one.to(like.device, like.dtype if is_inexact(one) else one.dtype))  # type: ignore[no-untyped-call]
    return module


def put_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register `module` at the dotted `path` below `root`, making containers on the way.

    A module that stands there already keeps its place in the tree of its children: a layer path
    may be the prefix of another (``fc`` and ``fc.extra``).
    """
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    existing = root._modules.get(name)
    if existing is not None:
        for key, child in existing._modules.items():
            module._modules.setdefault(key, child)
    root.add_module(name, module)


def remove_module(root: nn.Module, path: str) -> None:
    """Take the module at the dotted `path` below `root` out of the tree.

    What its children hold keeps its place: the path may be the prefix of others (``fc`` and ``fc.extra``).
    """
    parent, _, name = path.rpartition(".")
    owner, children = root.get_submodule(parent), root.get_submodule(path)._modules
    del owner._modules[name]
    below = {key: child for key, child in children.items() if child is not None and _holds(child)}
    if below:
        owner.add_module(name, nn.Module())
        root.get_submodule(path)._modules.update(below)


def _holds(module: nn.Module) -> bool:
    return any(True for _ in chain(module.parameters(), module.buffers()))


def free_name(name: str, fits: Callable[[str], bool], joint: str = "_") -> str:
    """The first of ``name``, ``name_1``, ``name_2``, ... that fits.

    Args:
        name: To begin with.
        fits: Whether nothing stands in the way of a name, or what stands there is the same.
        joint: Between name and number.
    """
    numbered = (f"{name}{joint}{number}" if number else name for number in count())
    return next(one for one in numbered if fits(one))


def put_or_share(root: nn.Module, path: str, module: M, same: Callable[[M], bool]) -> str:
    """Register `module` at ``path``, ``path_call_1``, ...: the first where nothing of its class or the same stands.

    Args:
        root: Owner of the path.
        path: To begin with.
        module: What to put there, unless the same is there.
        same: Whether one of its class that stands there is the same.

    Returns:
        The path where it, or the same, stands.
    """
    standing = {name: there for name, there in root.named_modules() if isinstance(there, type(module))}
    path = free_name(path, lambda one: one not in standing or same(standing[one]), "_call_")
    if path not in standing:
        put_module(root, path, module)
    return path
