"""Calls of modules whose functions run in their lean forms."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aimgraph.runtime.lean.forms import FORMS, METHODS
from aimgraph.runtime.lean.step import stands_aside


def lean_function(function: Any, kwargs: Mapping[str, Any]) -> Any:
    """The lean form of a function for a call with these keyword arguments, or the function itself."""
    return function if kwargs.get("out") is not None else FORMS.get(function, function)


def lean_method(name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
    """``value.name(*args, **kwargs)``, in its lean form for a tensor."""
    if isinstance(value, Tensor) and kwargs.get("out") is None:
        return METHODS[name](value, *args, **kwargs)
    return getattr(value, name)(*args, **kwargs)


class _LeanForms(TorchFunctionMode):
    """Has a lean form run in the place of every function that has one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return lean_function(func, kwargs or {})(*args, **(kwargs or {}))


def lean_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``module(*args, **kwargs)``: its own forward and hooks run, with functions that keep less where they may."""
    if stands_aside():
        return module(*args, **kwargs)
    with _LeanForms():
        return module(*args, **kwargs)
