"""Lines of code and nodes, as messages name them."""

import os
import sys
import traceback

import torch
from torch import nn


def place_of(error: BaseException) -> str:
    """The innermost line of the user's code in `error`'s traceback; empty if there is none."""
    where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if is_users(code.co_filename):
            where = f" at {code.co_filename}:{line} in {code.co_name}"
    return where


def told_error(error: BaseException | None) -> str:
    """What `error` says; its class and its place where it says nothing, as a failed ``assert``."""
    said = str(error).strip()
    return said if said or error is None else f"{type(error).__name__}{place_of(error)}"


def told_pre_hooks(module: nn.Module) -> str:
    """Names of the hooks that see, and may change, the arguments of a module's forward; empty if there are none."""
    hooks = module._forward_pre_hooks.values()
    return ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)


def told_hooks(module: nn.Module) -> str:
    """The same of all hooks around a module's forward."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)


def asking_line() -> str:
    """The innermost line of the user's code that runs."""
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        code = frame.f_code
        if is_users(code.co_filename):
            return f"{os.path.basename(code.co_filename)}:{line} in {code.co_name}"
    return "a place that can't be told"


def is_users(filename: str) -> bool:
    """Whether a file is neither torch's nor ours."""
    if filename.startswith("<"):  # made by code, but for what is typed into Python itself
        return filename.startswith(("<stdin", "<console", "<ipython-input", "<python-input"))
    return not filename.startswith(_NOT_USERS)


_NOT_USERS = tuple(os.path.dirname(file) + os.sep for file in (torch.__file__, __file__))
"""The folders of torch and of aimgraph: a user's own folder may be called ``torch``, too."""
