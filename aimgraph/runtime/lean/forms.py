"""The registry of lean forms: which function stands for a function of torch where the base is frozen."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

FORMS: dict[Function, Function] = {}
"""Function of torch -> its lean form, which takes the same arguments."""

METHODS: dict[str, Function] = {}
"""Name of a method of tensors -> the same."""

_MODULES: list[type[nn.Module]] = []


def lean_form(
    *functions: Function, methods: tuple[str, ...] = (), modules: tuple[type[nn.Module], ...] = ()
) -> Callable[[F], F]:
    """Register a lean form.

    Args:
        *functions: Of torch, which take the same arguments.
        methods: Names of methods of tensors that do the same.
        modules: Classes of torch whose forward calls such a function.
    """

    def registered(form: F) -> F:
        FORMS.update(dict.fromkeys(functions, form))
        METHODS.update(dict.fromkeys(methods, form))
        _MODULES.extend(modules)
        return form

    return registered


def has_lean_form(module: nn.Module | None) -> bool:
    """Whether a module is of a class, or derived from one, whose forward calls a function that has a lean form."""
    return isinstance(module, tuple(_MODULES))
