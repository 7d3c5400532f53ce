"""Is there code that could leave something to the next forward? By the code alone: that takes less than to run it.

What a forward keeps is put somewhere: into an attribute, a container, a variable around a function. Where no code that
a forward can reach does such a thing, its second call does what its first one did.
"""

import dis
import enum
import functools
import itertools
import logging
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import OWN, USUAL

_STANDARD = sysconfig.get_path("stdlib")
"""The folder of Python's own modules."""

_STORES = ("STORE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR", "STORE_SLICE", "STORE_NAME", "IMPORT_", "DELETE_")
"""Beginnings of the names of instructions that keep something, or take it away."""

_ON_FRESH = frozenset(("append", "extend", "insert", "update", "add", "setdefault", "pop"))
"""Methods that change a container, which may be one that the function has made itself."""

_CHANGES = _ON_FRESH | {
    *("appendleft", "popleft", "popitem", "clear", "remove", "discard", "sort", "reverse", "rotate", "send", "write"),
    *("register_buffer", "register_parameter", "register_module", "add_module", "register_forward_hook"),
    *("register_forward_pre_hook", "load_state_dict", "swap_tensors", "set_", "next", "setattr", "delattr", "exec"),
    *("__dict__", "__setattr__", "__setitem__", "__delattr__", "__delitem__", "__import__"),
    *("eval", "globals", "vars", "locals", "open", "input", "setitem", "delitem", "heappush", "heappop"),
}
"""Names of functions and methods that may keep something."""

_FRESH = ("BUILD_LIST", "BUILD_MAP", "BUILD_SET", "LIST_EXTEND", "DICT_UPDATE", "SET_UPDATE", "LIST_TO_TUPLE")
"""Instructions that make a container."""


_CONSTANTS = (
    *(Tensor, nn.Module, torch.dtype, torch.device, torch.memory_format, torch.layout, types.BuiltinFunctionType),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType, type(NotImplemented)),
    *(complex, bytes, range, logging.Logger),
)
"""Types of values in which nothing is kept; modules are looked at by their classes."""


def keeps_nothing(root: nn.Module) -> bool:
    """Whether no forward of a module below `root`, or of itself, can leave anything to the next; false if unsure.

    torch's own layers keep buffers only, and operations on these are part of a graph.
    """
    methods: dict[str, list[Any]] = {}
    for kind in {type(module) for module in root.modules()}:
        if kind.__module__.startswith("torch.nn.modules."):
            continue
        for parent in kind.__mro__[: kind.__mro__.index(nn.Module)]:
            for name, value in vars(parent).items():
                methods.setdefault(name, []).append(value)
    if not all(map(_is_plain, root.modules())):
        return False
    held = [value for module in root.modules() for key, value in vars(module).items() if key not in OWN]
    return _Walk(methods).all_keep_nothing([*methods.get("forward", ()), *held])


def _is_plain(module: nn.Module) -> bool:
    """Whether a call of a module runs its class's forward and nothing else."""
    hooks = (value for key, value in vars(module).items() if key.endswith("_hooks") and "state_dict" not in key)
    return "forward" not in vars(module) and not any(hooks) and not isinstance(module, torch.jit.ScriptModule)


class _Walk:
    """Goes through all code that values lead to.

    Args:
        methods: Name -> what modules have under it.
    """

    def __init__(self, methods: dict[str, list[Any]]) -> None:
        self.methods = methods
        self.seen: set[int] = set()

    def all_keep_nothing(self, values: Iterable[Any]) -> bool:
        """Whether nothing that these lead to keeps anything."""
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if id(value) in self.seen or _is_constant(value):
                continue
            self.seen.add(id(value))
            further = self._further(value)
            if further is None:
                return False
            waiting += further
        return True

    def _further(self, value: Any) -> list[Any] | None:
        """What a value leads to; None if it may keep something."""
        if isinstance(value, staticmethod | classmethod):
            return [value.__func__]
        if isinstance(value, property):
            return [one for one in (value.fget,) if one is not None]
        if isinstance(value, functools.partial):
            return [value.func, *value.args, *value.keywords.values()]
        if isinstance(value, tuple) or type(value) is list:
            return list(value)
        if type(value) is dict:
            return list(value.values())
        if isinstance(value, enum.EnumMeta):  # its methods; the members are constants
            return [one for one in vars(value).values() if not isinstance(one, value)]
        if isinstance(value, enum.Enum):
            return [type(value)]
        if not isinstance(value, types.FunctionType):
            return None
        found = _looked_at(value.__code__)
        if found is None:
            return None
        around = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        called = [method for name in found[1] for method in self.methods.get(name, ())]
        return [*around, *called, *(value.__defaults__ or ()), *_globals(value, found[0])]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that has no value yet
        return False


def _is_constant(value: Any) -> bool:
    """Whether a value is of torch or Python, or nothing can be kept in it."""
    if isinstance(value, types.ModuleType | types.FunctionType | type):
        return _is_known(getattr(value, "__module__", None) or value.__name__)
    return type(value) in USUAL or isinstance(value, _CONSTANTS)


def _is_known(module: str) -> bool:
    """Whether a module is torch's or Python's; a file of the user's may have the name of one of these."""
    package = module.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None)
    standard = file is None or (file.startswith(_STANDARD) and "site-packages" not in file)
    return package == "torch" or (package in sys.stdlib_module_names and package != "__main__" and standard)


def _globals(function: types.FunctionType, names: Iterable[str]) -> Iterator[Any]:
    for name in names:
        if name in function.__globals__:  # else it is Python's own, or of a package that is not installed
            yield function.__globals__[name]


@functools.lru_cache(4096)
def _looked_at(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]] | None:
    """The names of what a function takes from its file, and of attributes that it looks at; None if it may keep things.

    Args:
        code: Of the function; functions within it are part of it.
    """
    taken, attributes = set(), set()
    instructions = list(dis.get_instructions(code))
    fresh = _fresh(instructions)
    for before, one in zip([None, *instructions], instructions, strict=False):
        name = str(one.argval)
        if one.opname.startswith(_STORES) or (one.opname == "STORE_DEREF" and name in code.co_freevars):
            return None
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            taken.add(name)
        elif one.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            attributes.add(name)
        else:
            continue
        own = before is not None and before.opname.startswith("LOAD_FAST") and before.argval in fresh
        if name in _CHANGES and not (own and name in _ON_FRESH):
            return None
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found = _looked_at(inner)
            if found is None:
                return None
            taken |= found[0]
            attributes |= found[1]
    return frozenset(taken), frozenset(attributes)


def _fresh(instructions: list[dis.Instruction]) -> set[Any]:
    """Local variables that hold nothing but containers that the function has made."""
    pairs = list(itertools.pairwise(instructions))
    stored = [(before.opname in _FRESH, one.argval) for before, one in pairs if one.opname == "STORE_FAST"]
    return {name for made, name in stored if made} - {name for made, name in stored if not made}
