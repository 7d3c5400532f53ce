"""Grad modes and autocast inside a forward, as steps of a graph.

torch.fx follows what is computed, not the ``with`` blocks around it. Entering and leaving one are
nodes of their own here, so that a region of the base stays what it was.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

CONTEXTS: dict[str, Callable[..., Any]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "set_grad_enabled": torch.set_grad_enabled,
    "inference_mode": torch.inference_mode,
    "autocast": torch.autocast,
}
"""The contexts that are kept, by name."""


class _Open(threading.local):
    """Contexts that were entered and not left, in order, of one thread."""

    def __init__(self) -> None:
        self.contexts: list[Any] = []


_OPEN = _Open()


def enter_context(name: str, *args: Any, **kwargs: Any) -> Any:
    """Enter one of `CONTEXTS` made with these arguments, and give what `leave_context` takes."""
    context = CONTEXTS[name](*args, **kwargs)
    context.__enter__()
    _OPEN.contexts.append(context)
    return context


def leave_context(context: Any) -> None:
    """Leave the context that `enter_context` gave."""
    _OPEN.contexts.remove(context)
    context.__exit__(None, None, None)


for _function in (enter_context, leave_context):
    fx.node.has_side_effect(_function)


@contextmanager
def closed_contexts() -> Iterator[None]:
    """Leave every context that is still open afterwards, because an error came before its end."""
    before = len(_OPEN.contexts)
    try:
        yield
    finally:
        while len(_OPEN.contexts) > before:
            leave_context(_OPEN.contexts[-1])
