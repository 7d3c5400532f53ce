"""Operations whose outcome on fake tensors is known, because the same was done to the same shapes before.

Networks repeat themselves: most of their layers differ in nothing that a fake tensor shows.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from aimgraph.copies import OWN, is_constant
from aimgraph.operations import Operation, Recorder, leaves


@dataclass(frozen=True)
class _Outcome:
    """What an operation gave: the metadata of a new tensor, and what was recorded on the way.

    Attributes:
        like: Shape, strides, dtype and device.
        operations: The operations, None if no recorder watched.
        known: Whether the recorder watches the result.
    """

    like: tuple[Any, ...]
    operations: list[Operation] | None
    known: bool

    def make(self, mode: FakeTensorMode) -> Tensor:
        """A new fake tensor."""
        shape, stride, dtype, device = self.like
        with unset_fake_temporarily():
            empty = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        return FakeTensor(mode, empty, device)


class Derived:
    """Outcomes by what led to them: function or configuration of a layer, mode, and the metadata of the arguments.

    Only what gives one new tensor and changes nothing is kept; everything else runs each time.
    """

    def __init__(self) -> None:
        self._outcomes: dict[Any, _Outcome] = {}
        self._barren: set[Any] = set()

    def call(
        self, function: Callable[..., Any], args: Any, kwargs: Any, mode: FakeTensorMode, recorder: Recorder
    ) -> Any:
        """What a function of torch gives in `mode`, run or recalled.

        Args:
            function: The function.
            args: Its arguments.
            kwargs: The same.
            mode: Is active.
            recorder: Is active, too, and lists the operations.
        """
        if function in self._barren or _in_context():
            return function(*args, **kwargs)
        key = self.key("call_function", function, args, kwargs, recorder)
        value = self.recall(key, mode, recorder)
        if value is None:
            start = len(recorder.operations)
            value = function(*args, **kwargs)
            if not self.keep(key, (args, kwargs), value, recorder, start) and key is not None:
                self._barren.add(function)
        return value

    def key(
        self, op: str, target: Any, args: Any, kwargs: Any, recorder: Recorder | None, *, train: bool | None = None
    ) -> Any:
        """What an outcome depends on; None if that can't be told.

        Args:
            op: ``call_module``, ``call_function`` or ``call_method``; nothing else has a key.
            target: The module, the function, or the method's name.
            args: Its arguments.
            kwargs: The same.
            recorder: What lists its operations; it depends on which arguments the recorder watches.
            train: The mode, of a module.
        """
        if op not in ("call_module", "call_function", "call_method"):
            return None
        try:
            given = _describe(args, recorder), _describe(kwargs, recorder)
            return op, target if train is None else _configuration(target, train), given
        except _UnclearError:
            return None

    def recall(self, key: Any, mode: FakeTensorMode, recorder: Recorder | None) -> Tensor | None:
        """A tensor like the one that was given before, its operations recorded again; None if there was none."""
        outcome = self._outcomes.get(key) if key is not None else None
        if outcome is None or (recorder is not None and outcome.operations is None):
            return None
        value = outcome.make(mode)
        if recorder is not None:
            recorder.operations += outcome.operations or []
            if outcome.known:
                recorder.note(value)
        return value

    def keep(self, key: Any, given: Any, value: Any, recorder: Recorder | None, start: int) -> bool:
        """Remember what an operation gave, if that is one new tensor; whether it is.

        Args:
            key: As `key` made it.
            given: The arguments and the module's own tensors: the outcome must not share memory with them.
            value: What it gave.
            recorder: What listed its operations.
            start: How many operations there were before.
        """
        if key is None or type(value) is not FakeTensor or not _is_ordinary(value):
            return False
        if value.requires_grad or value.storage_offset():
            return False
        own = _storage(value)
        if any(_storage(leaf) == own for leaf in leaves(given) if isinstance(leaf, Tensor)):
            return False
        operations = None if recorder is None else recorder.operations[start:]
        known = recorder is not None and id(value) in recorder.known
        self._outcomes[key] = _Outcome(_metadata(value), operations, known)
        return True


class _UnclearError(Exception):
    """An argument whose influence can't be told from the outside."""


_CONSTANTS = frozenset(
    (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout)
)


def _describe(value: Any, recorder: Recorder | None) -> Any:
    """What an operation can see of a value, as something that can be looked up."""
    if isinstance(value, Tensor):
        if type(value) is not FakeTensor or not _is_ordinary(value):
            raise _UnclearError
        return Tensor, _metadata(value), recorder is None or id(value) in recorder.known
    if type(value) in _CONSTANTS:
        return type(value), value
    if type(value) in (tuple, list, torch.Size):
        return type(value), tuple(_describe(item, recorder) for item in value)
    if type(value) is dict:
        return dict, tuple((key, _describe(item, recorder)) for key, item in value.items())
    if type(value) is slice:
        return slice, _describe((value.start, value.stop, value.step), recorder)
    raise _UnclearError


def _in_context() -> bool:
    """Whether a forward has changed what operations do, beyond their arguments."""
    return torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch._C._is_any_autocast_enabled()


def _is_ordinary(tensor: FakeTensor) -> bool:
    """Whether metadata is all there is to a tensor."""
    return (
        tensor.layout is torch.strided
        and tensor.constant is None
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_inference())
    )


def _metadata(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _configuration(module: nn.Module, train: bool, above: tuple[nn.Module, ...] = ()) -> Any:
    """Everything that decides what a module does to shapes, for one that holds constants, tensors and such modules."""
    attributes = vars(module)
    if "forward" in attributes or any(module is one for one in above):  # what holds itself has no end
        raise _UnclearError
    above = (*above, module)
    kind: Hashable = type(module)  # type: ignore[assignment]
    found: list[Any] = [kind, train if _looks_at_mode(kind) else None]
    for key, value in attributes.items():
        if key in _TENSORS:
            found += [(name, None if tensor is None else _metadata(tensor)) for name, tensor in value.items()]
        elif key == "_modules":
            found += [(name, _setting(child, train, above)) for name, child in value.items()]
        elif key in OWN and not (value and "hooks" in key):
            continue
        elif key != "training":
            found += [key, _setting(value, train, above)]
    return tuple(found)


_TENSORS = ("_parameters", "_buffers")


def _setting(value: Any, train: bool, above: tuple[nn.Module, ...]) -> Any:
    if isinstance(value, nn.Module):
        return _configuration(value, train, above)
    if type(value) is tuple:
        return tuple(_setting(item, train, above) for item in value)
    if not is_constant(value):
        raise _UnclearError
    return type(value), value  # True, 1 and 1.0 are equal, and not the same


@cache
def _looks_at_mode(kind: Any) -> bool:
    """Whether a module may look at its training flag: any but a layer of torch none of whose methods mentions it."""
    if not kind.__module__.startswith("torch.nn.modules."):
        return True
    methods = [value for base in kind.__mro__ if base is not nn.Module for value in vars(base).values()]
    return any("training" in method.__code__.co_names for method in methods if hasattr(method, "__code__"))
