"""What the outcome of an operation depends on, as something that can be looked up."""

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import OWN, USUAL, is_constant
from aimgraph.fake.operations import Source
from aimgraph.torch_private import FakeTensor, OpOverload, OpOverloadPacket, default_device


def surroundings() -> Any:
    """The settings of torch that decide which operations its functions are made of, and what types these give."""
    cuda, mkldnn = torch.backends.cuda, torch.backends.mkldnn
    return (
        torch.get_default_dtype(),
        default_device(),
        torch.are_deterministic_algorithms_enabled(),
        mkldnn.enabled,
        torch.backends.cudnn.enabled,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


def is_known(part: Any) -> bool:
    """Whether whatever is called, or is an instance of a class, in a key is of torch, Python, or our own.

    No user can redefine that.
    """
    if type(part) is tuple:
        return all(map(is_known, part))
    if not callable(part):
        return True
    if isinstance(part, OpOverload | OpOverloadPacket):  # torch's module, whoever has registered it
        return str(part).startswith(_OPERATORS)
    home = getattr(part, "__module__", None) or getattr(getattr(part, "__objclass__", part), "__module__", None) or ""
    ours = home.startswith("aimgraph.runtime.") or home.partition(".")[0] in _KNOWN
    return ours and is_known(getattr(part, "__self__", None))  # a class whose method torch has


_KNOWN = frozenset(("torch", "_operator", "math", "builtins"))
_OPERATORS = ("aten.", "prims.", "aimgraph.")


class UnclearError(Exception):
    """An argument whose influence can't be told from the outside."""


_CONSTANTS = frozenset(
    (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout)
)


_SEQUENCES = frozenset((tuple, list, torch.Size))


def describe(value: Any, seen: dict[int, int], known: Mapping[int, Source]) -> Any:
    """What an operation can see of a value, as something that can be looked up.

    Args:
        value: An argument, or part of one.
        seen: Identity of a tensor -> its place among those in the arguments; extended.
        known: Identity of a tensor that operations are listed of -> its source; constants are not there.
    """
    kind = type(value)
    if kind in _CONSTANTS:
        return kind, value
    if kind in _SEQUENCES:
        return kind, tuple([describe(item, seen, known) for item in value])
    if kind is FakeTensor and is_ordinary(value):
        place = seen.setdefault(id(value), len(seen)) if id(value) in known else None
        return Tensor, metadata(value), place
    if kind is dict:
        return dict, tuple([(key, describe(item, seen, known)) for key, item in value.items()])
    if kind is slice:
        return slice, describe((value.start, value.stop, value.step), seen, known)
    raise UnclearError


def is_ordinary(tensor: FakeTensor) -> bool:
    """Whether metadata is all there is to a tensor."""
    return (
        tensor.layout is torch.strided
        and tensor.constant is None
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_inference())
    )


def metadata(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, strides, dtype and device."""
    device = tensor.fake_device if type(tensor) is FakeTensor else tensor.device
    laid_out = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    return tuple(tensor.shape), laid_out, tensor.dtype, device


def configuration(module: nn.Module, train: bool | None, above: tuple[nn.Module, ...] = ()) -> Any:
    """Everything that decides what a module does to shapes, for one that holds constants, tensors and such modules."""
    attributes = vars(module)
    if "forward" in attributes or isinstance(module, torch.jit.ScriptModule):
        raise UnclearError
    if any(module is one for one in above):  # what holds itself has no end
        raise UnclearError
    above = (*above, module)
    kind: Hashable = type(module)  # type: ignore[assignment]
    mode = module.training if train is None else train  # a model may keep a norm of its own in the other mode
    found: list[Any] = [kind, kind.forward, mode if _looks_at_mode(kind) else None]  # type: ignore[attr-defined]
    for key, value in attributes.items():
        if key in OWN and not value:
            continue
        if key in _TENSORS:
            found += [(name, None if tensor is None else metadata(tensor)) for name, tensor in value.items()]
        elif key == "_modules":
            found += [(name, _setting(child, train, above)) for name, child in value.items()]
        elif key in OWN and "hooks" not in key:
            continue
        elif key != "training":
            found += [key, _setting(value, train, above)]
    return tuple(found)


_TENSORS = ("_parameters", "_buffers")


def _setting(value: Any, train: bool | None, above: tuple[nn.Module, ...]) -> Any:
    if type(value) in USUAL:
        return type(value), value
    if isinstance(value, nn.Module):
        return configuration(value, train, above)
    if type(value) is tuple:
        return tuple([_setting(item, train, above) for item in value])
    if not is_constant(value):
        raise UnclearError
    return type(value), value  # True, 1 and 1.0 are equal, and not the same


def _looks_at_mode(kind: Any) -> bool:
    """Whether a module may look at its training flag: any but a layer of torch none of whose methods mentions it."""
    return not kind.__module__.startswith("torch.nn.modules.") or _mentions_mode(kind)


@cache  # of torch's own classes: those made for one parametrised module would keep it
def _mentions_mode(kind: Any) -> bool:
    methods = [value for base in kind.__mro__ if base is not nn.Module for value in vars(base).values()]
    return any("training" in method.__code__.co_names for method in methods if hasattr(method, "__code__"))
