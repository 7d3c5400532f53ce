"""What a forward changes while it is traced: attributes, buffers, random states; and which modes it looks at."""

import copy
import io
import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from aimgraph.copies import USUAL
from aimgraph.errors import TraceError
from aimgraph.reproducible import kept_randomness
from aimgraph.torch_private import patched
from aimgraph.tracing.values import ValueTracer


@contextmanager
def kept_attributes(root: nn.Module, notes: list[str], setters: list[str]) -> Iterator[None]:
    """Put back plain attributes that a forward sets: they hold proxies now. torch.fx's own constants stay.

    Args:
        root: The module.
        notes: Extended by a note on each attribute.
        setters: Extended by the path of the module that has it.
    """
    before = {
        module: {key: (value, _content(value)) for key, value in vars(module).items()} for module in root.modules()
    }
    tensors: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = [
        (m, held, dict(held))
        for m in root.modules()
        if not isinstance(m, torch.jit.ScriptModule)  # no Python runs in it
        for held in (m._parameters, m._buffers)
    ]
    try:
        yield
    finally:
        paths = {module: path for path, module in root.named_modules()}
        for module, held, kept in tensors:
            changed = [key for key in {**held, **kept} if held.get(key) is not kept.get(key)]
            held.clear()
            held.update(kept)
            notes += [_not_kept(paths[module], key) for key in changed]
        for path, module in root.named_modules():
            old, now = before.get(module, {}), vars(module)
            for key in [key for key, value in now.items() if key not in old or _changed(value, *old[key])]:
                if key.startswith("_tensor_constant") or key in ("training", "_parameters", "_buffers", "_modules"):
                    continue
                notes.append(_not_kept(path, key))
                setters.append(path)
                if key in old:
                    now[key] = _restored(*old[key])
                else:
                    del now[key]


@contextmanager
def kept_generators(root: nn.Module) -> Iterator[None]:
    """Put back what modules draw from, and step through: the result goes on where the model that was given stands."""
    kinds: list[Any] = [random.Random, torch.Generator, Iterator]
    if "numpy" in sys.modules:
        kinds += [sys.modules["numpy"].random.Generator, sys.modules["numpy"].random.RandomState]
    memo: dict[int, Any] = {}  # what is shared stays shared
    before = [
        (module, key, copy.deepcopy(value, memo))
        for module in root.modules()
        for key, value in vars(module).items()
        if isinstance(value, tuple(kinds)) and not isinstance(value, io.IOBase)
    ]
    try:
        yield
    finally:
        for module, key, value in before:
            vars(module)[key] = value


def _not_kept(path: str, key: str) -> str:
    return f"the forward sets {'.'.join(filter(None, (path, key)))}, which the graph does not keep"


_CONTAINERS = (list, dict, set, deque)


def _content(value: Any) -> Any:
    """What a container holds, to be put back; None for anything else."""
    if type(value) in USUAL or not isinstance(value, _CONTAINERS):
        return None
    return copy.copy(value) if value else ()


def _changed(now: Any, old: Any, content: Any) -> bool:
    if now is not old or content is None:
        return now is not old
    pairs = zip(_items(now), _items(content), strict=False)
    return len(now) != len(content) or any(a is not b for a, b in pairs)


def _items(container: Any) -> list[Any]:
    return [*container.keys(), *container.values()] if isinstance(container, dict) else list(container)


def _restored(value: Any, content: Any) -> Any:
    """The container itself, holding what it held."""
    if content is not None:
        value.clear()
        (value.extend if isinstance(value, list | deque) else value.update)(content)
    return value


def refuse_assigned(module: nn.Module) -> None:
    """A graph would compute what a forward assigns to a buffer, and not assign it."""
    for name, value in {**module._buffers, **module._parameters}.items():
        if isinstance(value, fx.Proxy):
            raise TraceError(f"its forward assigns its buffer {name!r}, which a graph does not keep")


@contextmanager
def unused_randomness(root: nn.Module) -> Iterator[None]:
    """Put every random state back; refuse a forward that drew from one that no graph can show."""
    with kept_randomness() as drawn:
        yield
    if drawn:
        raise TraceError(
            f"{type(root).__name__} can't be traced: its forward draws from {drawn[0]}, whose numbers would become "
            "constants; use torch.rand, or move that code into a submodule without conv or linear layers"
        )


@contextmanager
def watched_modes(seen: dict[nn.Module, None], tracer: ValueTracer) -> Iterator[None]:
    """Note which modules that `tracer` enters look at their own `training` flag."""

    def get(module: nn.Module) -> bool:
        if not tracer.aside:
            seen[module] = None
        if "training" not in vars(module):
            raise AttributeError("training")  # a scripted module then looks for its own
        return bool(vars(module)["training"])

    def put(module: nn.Module, flag: bool) -> None:
        vars(module)["training"] = flag

    with patched((nn.Module, "training", lambda _: property(get, put))):
        yield
