"""Calls of modules whose functions run in their lean forms."""

from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from aimgraph.runtime.lean.forms import FORMS
from aimgraph.runtime.lean.step import stands_aside


class _LeanForms(TorchFunctionMode):
    """Has a lean form run in the place of every function that has one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return FORMS.get(func, func)(*args, **(kwargs or {}))


def lean_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``module(*args, **kwargs)``: its own forward and hooks run, with functions that keep less where they may."""
    if stands_aside():
        return module(*args, **kwargs)
    with _LeanForms():
        return module(*args, **kwargs)
