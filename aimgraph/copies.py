"""Copies of modules, and pauses of the garbage collector: what a transform does many times over."""

import copy
import dataclasses
import enum
import gc
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

_CONSTANTS = (
    *(int, float, complex, bool, str, bytes, type(None), type, enum.Enum),
    *(types.FunctionType, types.BuiltinFunctionType, torch.dtype, torch.device, torch.memory_format, torch.layout),
)
USUAL = frozenset((int, float, bool, str, type(None)))
"""Types of most settings of a module, and of most arguments: nothing can change their values."""

OWN = frozenset(key for key, value in vars(nn.Module()).items() if isinstance(value, dict | set))
"""The containers that every module has to itself: tensors, modules below it, hooks. Any other may be shared."""

_HELD = ("_parameters", "_buffers", "_modules")
_HOOKS = tuple(key for key in OWN if "hooks" in key)


def copy_module(module: M, memo: dict[int, Any] | None = None) -> M:
    """What `copy.deepcopy` gives, in a fraction of its time where modules hold numbers, tensors and such modules only.

    It copies what that refuses, too: results that a module keeps as buffers or attributes, as `weight` below the
    hooks of `torch.nn.utils.weight_norm`, `spectral_norm` and `prune`, without what they were computed from.

    Args:
        module: The module.
        memo: As for `copy.deepcopy`: id -> what stands for that object in the copy.
    """
    memo = {} if memo is None else memo
    copy_results(module, memo)
    _copy_scripted(module, memo)
    plain: dict[type, bool] = {}
    for part in reversed(modules_of(module)):  # those below a module come before it
        if id(part) not in memo and _is_shallow(part, plain) and all(id(below) in memo for below in part.children()):
            memo[id(part)] = _copy_shallow(part, memo)
    return copy.deepcopy(module, memo)


def modules_of(thing: Any) -> dict[nn.Module, None]:
    """A module, those below it, and those that they hold without owning them; each before what is below it."""
    seen: dict[nn.Module, None] = {}
    waiting: list[nn.Module] = [thing] if isinstance(thing, nn.Module) else []
    later: list[nn.Module] = []
    while waiting or later:
        module = waiting.pop() if waiting else later.pop()
        if module in seen:
            continue
        seen[module] = None
        waiting += [part for part in reversed(module._modules.values()) if part is not None]
        for part in vars(module).get("aim_borrowed", ()):
            later += part if isinstance(part, tuple) else (part,)
    return seen


def copy_results(module: nn.Module, memo: dict[int, Any]) -> None:
    """Add copies of the tensors that `copy.deepcopy` does not take to its memo.

    These are results that modules keep, as buffers or attributes, and sparse tensors in compressed rows or columns.
    """
    for part in modules_of(module):
        for value in _results_in(tuple(vars(part).values())):
            if id(value) not in memo:
                made = value.detach().clone()
                memo[id(value)] = nn.Parameter(made, value.requires_grad) if type(value) is nn.Parameter else made


_HOLDING = frozenset((tuple, list, dict, OrderedDict, deque))


def _results_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors that were computed, of which `copy.deepcopy` takes none, and sparse ones, also those in containers."""
    for value in values:
        kind = type(value)
        if kind in USUAL:
            continue
        if kind in _HOLDING:
            if value:  # most containers of a module are empty, and a generator takes its time
                yield from _results_in(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, Tensor) and (not value.is_leaf or value.layout is not torch.strided):
            yield value


def _copy_scripted(module: nn.Module, memo: dict[int, Any]) -> None:
    """Add copies of scripted modules to the memo: torch's own have parameters that no optimiser takes.

    One whose tensors all stay as they are stays itself.
    """
    inside: set[nn.Module] = set()
    for part in modules_of(module):
        if isinstance(part, torch.jit.ScriptModule) and part not in inside and id(part) not in memo:
            inside.update(part.modules())
            tensors = [*part.parameters(), *part.buffers()]
            if tensors and all(memo.get(id(tensor)) is tensor for tensor in tensors):
                memo[id(part)] = part
                continue
            with torch.no_grad():
                made = memo[id(part)] = copy.deepcopy(part, memo)
            for one, other in zip(part.parameters(), made.parameters(), strict=True):
                other.requires_grad_(one.requires_grad)


def is_constant(value: Any) -> bool:
    """Whether nothing can change `value`: numbers, names, types, functions, and tuples and frozen records of such."""
    if type(value) in USUAL:
        return True
    if isinstance(value, tuple):
        return all(map(is_constant, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen = value.__dataclass_params__.frozen  # type: ignore[attr-defined]
        return frozen and all(is_constant(getattr(value, field.name)) for field in dataclasses.fields(value))
    return isinstance(value, _CONSTANTS)


def is_of_torch(module: nn.Module) -> bool:
    """Whether `module` is a layer of `torch.nn` itself: no hooks, nothing below it, its forward untouched."""
    attributes = vars(module)
    return (
        type(module).__module__.startswith("torch.nn.modules.")
        and not attributes["_modules"]
        and "forward" not in attributes
        and not any(attributes[hooks] for hooks in ("_forward_hooks", "_forward_pre_hooks"))
    )


def _is_shallow(module: nn.Module, plain: dict[type, bool]) -> bool:
    """Whether a copy of `module` may share everything with it but its tensors and what it contains.

    Args:
        module: The module.
        plain: What was found of classes so far.
    """
    kind, attributes = type(module), vars(module)
    if kind not in plain:
        plain[kind] = _copies_plainly(kind)
    return (
        plain[kind]
        and attributes.get("_compiled_call_impl") is None
        and attributes.keys() >= OWN
        and not any(attributes[key] for key in _HOOKS)
        and all(key in OWN or is_constant(value) for key, value in attributes.items())
    )


def _copies_plainly(kind: type[nn.Module]) -> bool:
    """Whether a class leaves copying to Python and torch."""
    methods = (getattr(kind, name, None) for name in ("__getstate__", "__setstate__"))
    return (
        not hasattr(kind, "__deepcopy__")
        and (kind.__reduce_ex__, kind.__reduce__) == (object.__reduce_ex__, object.__reduce__)
        and not any(
            isinstance(one, types.FunctionType) and not one.__module__.startswith("torch.nn.modules.")
            for one in methods
        )
        and "__slots__" not in vars(kind)
    )


def _is_torchs(method: Any) -> bool:
    """Whether a class leaves pickling to Python or to torch, which drop or set nothing that a copy would miss."""
    return not isinstance(method, types.FunctionType) or method.__module__.startswith("torch.nn.modules.")


def _copy_shallow(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    copied = type(module).__new__(type(module))
    attributes = vars(copied)
    for key, value in vars(module).items():
        if key in _HELD:  # faster than a deep copy of the dict
            value = {name: _copied(one, memo) for name, one in value.items()} if value else {}
        elif key in OWN:
            value = value.copy()
        attributes[key] = value
    return copied


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    return memo[id(value)] if id(value) in memo else copy.deepcopy(value, memo)


@contextmanager
def paused_collection() -> Iterator[None]:
    """Keep Python's cyclic garbage collector from looking through everything while much is made and little dropped."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
