"""What a forward leaves outside of its module while it is looked at: fake tensors in caches outside of it.

``functools.lru_cache`` around a function that makes a grid, a dict of masks by size at the top of a file, an attribute
of a class, an object that a hook keeps features in: all of these outlive the look, and the next call of the base itself
would find a tensor without values.
"""

import copy
import functools
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from torch import fx, nn

from aimgraph.copies import USUAL
from aimgraph.torch_private import FakeTensor
from aimgraph.user_code import is_users

_Cached = functools._lru_cache_wrapper


class Outside:
    """Where a module's modules, their classes, and the files that these are defined in, can keep something.

    Args:
        root: The module.
        original: What a copy of the module must not reach; None where it may reach everything.

    Attributes:
        foreign: Identity of a parameter or buffer of the original -> its name.
        registries: Attributes of classes that hold modules of the model, as ``Leaky.instances``.
    """

    def __init__(self, root: nn.Module, original: nn.Module | None = None) -> None:
        self.original = original
        held = () if original is None else chain(original.named_parameters(), original.named_buffers())
        self.foreign = {id(tensor): name for name, tensor in held}
        kinds = dict.fromkeys(kind for module in root.modules() for kind in type(module).__mro__)
        self.classes = [kind for kind in kinds if _is_users(kind.__module__)]
        homes = dict.fromkeys(kind.__module__ for kind in self.classes)
        self.files = [sys.modules[name] for name in homes]
        packages = {name.partition(".")[0] for name in homes}
        around = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in packages and m is not None]
        self.caches: dict[int, Any] = {}
        for owner in (*self.classes, *around):
            for value in list(vars(owner).values()):
                function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
                if isinstance(function, _Cached):
                    self.caches[id(function)] = function
        self.objects = _objects(root)
        self.registries = _registries(self.classes, set((original or root).modules()))

    def notes(self) -> list[str]:
        """What a plan says of them."""
        return [
            f"{name} holds modules of the model that was given: what goes through it, as a reset of all states, does "
            "not reach the result's (nor those of a copy.deepcopy): add the result's modules to it, or go through "
            "aim.modules() instead"
            for name in self.registries
        ]

    def of_copy(self, root: nn.Module) -> "Outside":
        """The same of a copy of the module, which is of the same classes."""
        other = copy.copy(self)
        other.objects = _objects(root)
        originals = set() if self.original is None else set(self.original.modules())
        shared = [module for module in root.modules() if module in originals]  # by a __deepcopy__ of its own
        known = {id(tensor) for module in shared for tensor in chain(module.parameters(), module.buffers())}
        other.foreign = {key: name for key, name in self.foreign.items() if key not in known}
        return other

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave no fake tensor or proxy behind: functions forget what they have cached, all else is put back."""
        misses = [(cache, cache.cache_info().misses) for cache in self.caches.values()]
        held = [(owner, dict(vars(owner))) for owner in (*self.classes, *self.files, *self.objects.values())]
        try:
            yield
        finally:
            for cache, before in misses:
                if cache.cache_info().misses != before:
                    cache.cache_clear()
            for owner, names in held:
                _tidy(owner, names)


def _registries(classes: Iterable[type], modules: set[nn.Module]) -> list[str]:
    """Attributes of classes that list some of these modules."""
    found = []
    for kind in classes:
        for name, value in list(vars(kind).items()):
            pairs = list(value.items()) if type(value) in _MAPPINGS else []
            items = chain.from_iterable(pairs) if pairs else list(value) if type(value) in _LISTS else ()
            if any(isinstance(item, nn.Module) and item in modules for item in items):
                found.append(f"{kind.__name__}.{name}")
    return found


_MAPPINGS = (dict, OrderedDict, WeakKeyDictionary, WeakValueDictionary)
_LISTS = (list, tuple, set, frozenset, deque, WeakSet)


def _is_users(name: str) -> bool:
    file = getattr(sys.modules.get(name), "__file__", None)
    return name in sys.modules and (file is None or is_users(file)) and name != "builtins"


def _objects(root: nn.Module) -> dict[int, Any]:
    return {id(value): value for module in root.modules() for value in _held_by(module)}


_WITHOUT = USUAL | {tuple, list, set}
"""Types of most attributes; none of these is an object of the user's."""


def _held_by(module: nn.Module) -> Iterator[Any]:
    """Objects of the user's classes among a module's attributes and hooks."""
    for name, value in vars(module).items():
        if type(value) in _WITHOUT or (type(value) in (dict, OrderedDict) and not value):
            continue
        hooks = list(value.values()) if name.endswith("_hooks") and isinstance(value, dict) else []
        for one in (value, *(getattr(hook, "__self__", hook) for hook in hooks)):
            is_object = hasattr(one, "__dict__") and not isinstance(one, nn.Module | type | FunctionType)
            if is_object and _is_users(type(one).__module__):
                yield one


def _tidy(owner: Any, names: dict[str, Any]) -> None:
    """Put back attributes that hold what must not stay; take such items out of lists and dicts."""
    for name, value in list(vars(owner).items()):
        if _is_left_over(value):
            if name in names:
                setattr(owner, name, names[name])
            else:
                delattr(owner, name)
        elif type(value) is dict:
            for key in [key for key, item in value.items() if _is_left_over(item)]:
                del value[key]
        elif type(value) is list and any(map(_is_left_over, value)):
            value[:] = [item for item in value if not _is_left_over(item)]


def _is_left_over(value: Any) -> bool:
    """Whether a value is, or is a tuple of, what only exists while a forward is looked at."""
    if type(value) is tuple:
        return any(isinstance(item, FakeTensor | fx.Proxy) for item in value)
    return isinstance(value, FakeTensor | fx.Proxy)
