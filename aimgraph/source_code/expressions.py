"""Nodes of a graph as expressions of Python."""

import builtins
import inspect
import math
import operator
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from aimgraph.errors import PlanError
from aimgraph.runtime.inplace import INPLACE
from aimgraph.source_code.copied import FUNCTIONS
from aimgraph.source_code.literals import constant, is_name, quoted
from aimgraph.source_code.records import is_record

_INFIX = {
    **{operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.floordiv: "//"},
    **{operator.mod: "%", operator.pow: "**", operator.matmul: "@", operator.and_: "&", operator.or_: "|"},
    **{operator.xor: "^", operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<="},
    **{operator.gt: ">", operator.ge: ">=", operator.lshift: "<<", operator.rshift: ">>"},
    **dict(zip(INPLACE, ("+", "-", "*", "/", "//", "%", "**", "@", "&", "|", "^"), strict=True)),
    operator.iadd: "+",
}
"""Functions that are operators; of numbers, those in place give the same."""

_PREFIX = {operator.neg: "-", operator.pos: "+", operator.invert: "~", operator.not_: "not "}


def expression(node: fx.Node, root: nn.Module, path: str, names: Mapping[fx.Node, str]) -> str:
    """What a node computes, inside the forward of a module.

    Args:
        node: Of a graph of torch's own modules and functions.
        root: Of the graph.
        path: Of the module whose forward it stands in.
        names: Node -> the name of its value.

    Raises:
        PlanError: It calls a function that is not of torch.
    """
    args = [text(value, names) for value in node.args]
    kwargs = [f"{key}={text(value, names)}" for key, value in node.kwargs.items() if not _is_default(node, key, value)]
    target: Any = node.target
    if node.op in ("get_attr", "call_module"):
        member = attribute(root, path, str(target))
        return member if node.op == "get_attr" else f"{member}({', '.join([*args, *kwargs])})"
    if node.op == "call_method":
        if target in _SIZES and len(node.args) == 2 and isinstance(node.args[1], list | tuple) and node.args[1]:
            args = [args[0], *(text(value, names) for value in node.args[1])]
        return f"{args[0]}.{target}({', '.join([*args[1:], *kwargs])})"
    return _operator(node, args, names) or f"{function_name(target)}({', '.join([*args, *kwargs])})"


def _operator(node: fx.Node, args: list[str], names: Mapping[fx.Node, str]) -> str:
    """A call that is written with signs; empty for any other."""
    target: Any = node.target
    if target in _INFIX and len(args) == 2 and not node.kwargs:
        sign = _INFIX[target]
        if sign == "**":
            base = f"({args[0]})" if args[0].startswith("-") else args[0]
            return f"{base}**{args[1]}" if _is_simple(base) and _is_simple(args[1]) else f"{base} ** {args[1]}"
        return f"{args[0]} {sign} {args[1]}"
    if target is list and node.args and isinstance(node.args[0], list):
        return args[0]
    if target in _PREFIX:
        return f"{_PREFIX[target]}{args[0]}"
    if target is getattr:
        return f"{args[0]}.{node.args[1]}"
    if target is operator.setitem:
        return f"{args[0]}[{_index(node.args[1], names)}] = {args[2]}"
    if target is operator.getitem:
        return f"{args[0]}[{_index(node.args[1], names)}]"
    return ""


def sign_of(node: fx.Node) -> str:
    """The sign of an operator."""
    target: Any = node.target
    return _INFIX[target]


def _is_simple(text: str) -> bool:
    """Whether ruff puts no space around a sign beside this."""
    return re.fullmatch(r"-?[\w.]+", text) is not None


_SIZES = ("reshape", "view", "permute", "expand", "repeat")
"""Methods that take sizes or axes one by one."""


def _is_default(node: fx.Node, keyword: str, value: Any) -> bool:
    """Whether a function does the same without an argument."""
    if not inspect.isfunction(node.target) or isinstance(value, fx.Node):
        return False
    behind = getattr(F, f"_{node.target.__name__}", node.target)  # torch calls one of two for most kinds of pooling
    parameter = inspect.signature(behind).parameters.get(keyword)
    return parameter is not None and type(parameter.default) is type(value) and bool(parameter.default == value)


def function_name(function: Callable[..., Any]) -> str:
    """``F.relu``, ``torch.cat``, ``int``.

    Raises:
        PlanError: It is not of torch.
    """
    name = getattr(function, "__name__", str(function))
    if FUNCTIONS.get(name) is function or function is OrderedDict or is_record(function):
        return name
    for place, module in (("F.", F), ("torch.", torch), ("", builtins)):
        if getattr(module, name, None) is function:
            return place + name
    if getattr(math, name, None) is function:
        return f"math.{name}"
    owner = getattr(function, "__module__", None) or ""
    if getattr(F, name, None) is not None and owner.startswith("torch._C._nn"):
        return f"F.{name}"
    if owner.partition(".")[0] == "torch" and not owner.startswith("torch._"):
        return f"{owner}.{name}"
    raise PlanError(f"{owner}.{name} is not a function of torch: it can't be written as source")


def context(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    """``torch.autocast("cpu", enabled=False)``, what a node enters."""
    name, *args = node.args
    given = [text(value, names) for value in args]
    given += [f"{key}={text(value, names)}" for key, value in node.kwargs.items()]
    return f"torch.{name}({', '.join(given)})"


def attribute(root: nn.Module, path: str, target: str) -> str:
    """``self.layer1[0].conv1`` for a member of a module.

    Raises:
        PlanError: It is no member of that module.
    """
    start = f"{path}." if path else ""
    if target == path:
        return "self"
    if not target.startswith(start):
        target = start + _alias(root, path, target)
    found = "self"
    module: Any = root.get_submodule(path)
    for name in target[len(start) :].split("."):
        if type(module) in (nn.ModuleDict, nn.ParameterDict):
            found += f"[{quoted(name)}]"
        elif isinstance(module, nn.ParameterList):
            found += f"[{name}]"
        elif is_name(name):
            found += f".{name}"
        elif isinstance(module, nn.Sequential) or (isinstance(module, nn.ModuleList) and found != "self"):
            placed = sorted(module._modules, key=lambda one: not one.isdigit())  # as the source makes them
            found += f"[{placed.index(name)}]"
        else:
            what = "parameter" if name in module._parameters else "buffer" if name in module._buffers else "submodule"
            found += f".get_{what}({quoted(name)})"
        module = getattr(module, "_modules", {}).get(name)
    return found


def _alias(root: nn.Module, path: str, target: str) -> str:
    """The path of a member inside the module at `path` that is the same as one outside of it."""
    owner, _, name = target.rpartition(".")
    wanted = getattr(root.get_submodule(owner), name)
    module = root.get_submodule(path)
    for kind in (module.named_parameters, module.named_buffers, module.named_modules):
        found = next((one for one, member in kind(remove_duplicate=False) if member is wanted), None)
        if found is not None:
            return found
    raise PlanError(f"{target} is used inside {path}, of which it is no member: make it one, self.NAME = ...")


def text(value: Any, names: Mapping[fx.Node, str]) -> str:
    """An argument."""
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, tuple):
        items = ", ".join(text(item, names) for item in value)
        if is_record(type(value)):
            return f"{type(value).__name__}({items})"
        return f"({items}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(text(item, names) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{text(key, names)}: {text(item, names)}' for key, item in value.items())}}}"
    if isinstance(value, slice):
        return f"slice({text(value.start, names)}, {text(value.stop, names)}, {text(value.step, names)})"
    return constant(value)


def _index(value: Any, names: Mapping[fx.Node, str]) -> str:
    """What stands between brackets."""
    if value == ():
        return "()"
    items = value if isinstance(value, tuple) else (value,)
    return ", ".join(_slice(item, names) for item in items)


def _slice(value: Any, names: Mapping[fx.Node, str]) -> str:
    if not isinstance(value, slice):
        return text(value, names)
    start, stop, step = ("" if one is None else text(one, names) for one in (value.start, value.stop, value.step))
    given = [start, stop, *([step] if step else [])]
    if all(not one or _is_simple(one) for one in given):
        return ":".join(given)
    return " : ".join(given).strip()
