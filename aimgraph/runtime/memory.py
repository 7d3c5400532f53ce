"""The modules that a memory adds to a network, in a tree that names them by what they do."""

from collections.abc import Callable
from itertools import count

from torch import nn


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


def free_name(name: str, fits: Callable[[str], bool], joint: str = "_") -> str:
    """The first of ``name``, ``name_1``, ``name_2``, ... that fits.

    Args:
        name: To begin with.
        fits: Whether nothing stands in the way of a name, or what stands there is the same.
        joint: Between name and number.
    """
    numbered = (f"{name}{joint}{number}" if number else name for number in count())
    return next(one for one in numbered if fits(one))
