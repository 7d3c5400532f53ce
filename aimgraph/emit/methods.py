"""Methods of the base's class that only tell something of a model: code that configures training calls them by name.

The names of parameters that do not decay, patterns that group layers, a classifier, a device: such a method runs on a
stand-in, an instance of the base's class around the modules and tensors of the transformed module, memories included.
What computes with the model, or changes it, would know nothing of the memory, or nothing of the graph: there the
stand-in is put back as it was, and the method is refused.
"""

import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import OWN
from aimgraph.emit.bare import bare, rebind_hooks
from aimgraph.emit.record import record_of
from aimgraph.torch_private import TorchDispatchMode, storage_of, tree_leaves

_PLAIN = {kind: kind.__name__ for kind in (bool, int, float, str)}
"""Types that an argument may have to have for a method to be one that tells something."""


_SETTING = frozenset({dis.opmap["STORE_ATTR"], dis.opmap["DELETE_ATTR"]})


def may_tell(kind: type[nn.Module], name: str) -> bool:
    """Whether a member of a class may be one that only tells something: it takes no tensors, and sets no attributes.

    That is seen without running it; what it does beyond that is seen when it runs.
    """
    member = inspect.getattr_static(kind, name)
    if isinstance(member, staticmethod | classmethod):
        return True
    function = member.fget if isinstance(member, property) else member
    if name.startswith("_") or not isinstance(function, types.FunctionType) or inspect.iscoroutinefunction(function):
        return False
    arguments = list(inspect.signature(function).parameters.values())[1:]
    needed = [
        one for one in arguments if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    plain = all(one.annotation in (*_PLAIN, *_PLAIN.values()) for one in needed)
    return plain and not any(map(_sets_attributes, _codes(inspect.unwrap(function).__code__)))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _sets_attributes(code: types.CodeType) -> bool:
    return not _SETTING.isdisjoint(code.co_code[::2])  # every other byte is an instruction


def member_of_the_base(aim: nn.Module, name: str) -> Any:
    """What stands for a method or a property of the base's class on a transformed module.

    Raises:
        AttributeError: It does more than to tell something of the model. For a method that is seen at its call, unless
            it is known before.
    """
    kind = record_of(aim).base_class
    if not may_tell(kind, name):
        raise _lost(kind, name)
    member = inspect.getattr_static(kind, name)
    if isinstance(member, staticmethod | classmethod):
        return getattr(kind, name)
    if isinstance(member, property):
        return _told(aim, name, lambda base: getattr(base, name))

    @functools.wraps(member)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _told(aim, name, lambda base: member(base, *args, **kwargs))

    return call


def _lost(kind: type, name: str) -> AttributeError:
    return AttributeError(
        f"{name}() is a method of {kind.__name__}, and the transformed module has its forward only, besides methods "
        "that neither compute with the model nor change it: call that, or transform the part below it"
    )


def _told(aim: nn.Module, name: str, ask: Callable[[nn.Module], Any]) -> Any:
    base = _stand_in(aim)
    before, mode = _State(base), _NoArithmetic(base)
    try:
        with mode:
            answer = ask(base)
            if inspect.isgenerator(answer):
                answer = iter(list(answer))
    except Exception:
        if not mode.computed:
            raise
    finally:
        changed = before.restored()
    if mode.computed or changed:
        raise _lost(record_of(aim).base_class, name) from None
    return aim if answer is base else answer


def _stand_in(aim: nn.Module) -> nn.Module:
    """The base with the memories of `aim` inside, around the same modules and tensors."""
    base = bare(aim)
    rebind_hooks(base)
    for key in ("_modules", "_parameters", "_buffers"):
        vars(base)[key] = dict(vars(aim)[key])
    return base


class _State:
    """What the modules of a model hold, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        self.held = [(module, dict(vars(module)), _containers(module)) for module in model.modules()]
        self.flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restored(self) -> bool:
        """Put everything back; whether something had changed."""
        changed = False
        for module, attributes, containers in self.held:
            for now, before in (
                (vars(module), attributes),
                *((attributes[key], old) for key, old in containers.items()),
            ):
                if now.keys() != before.keys() or any(now[key] is not value for key, value in before.items()):
                    changed = True
                    now.clear()
                    now.update(before)
        for parameter, flag in self.flags:
            if parameter.requires_grad != flag:
                changed = True
                parameter.requires_grad_(flag)
        return changed


def _containers(module: nn.Module) -> dict[str, dict[Any, Any]]:
    return {key: dict(value) for key, value in vars(module).items() if key in OWN and isinstance(value, dict)}


class _NoArithmetic(TorchDispatchMode):
    """Fails at an operation that takes a tensor of a model, and remembers that there was one.

    To detach a tensor, as ``state_dict()`` does, is none: the result is in the same memory, and told by that.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computed = False
        self.own = {storage_of(tensor) for tensor in (*model.parameters(), *model.buffers()) if _is_strided(tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func not in _DETACHING and any(not _is_strided(leaf) or storage_of(leaf) in self.own for leaf in given):
            self.computed = True
            raise RuntimeError("it computes with the model")
        return func(*args, **(kwargs or {}))


_DETACHING = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


def _is_strided(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided
