"""Operations whose outcome on fake tensors is known, because the same was done to the same shapes before.

Networks repeat themselves: most of their layers differ in nothing that a fake tensor shows. And the same network is
often transformed again, with another memory: what functions and layers of torch give is remembered by the process.
"""

import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import OWN, is_constant
from aimgraph.fake.operations import HELD, Operation, Recorder, Source, leaves
from aimgraph.torch_private import (
    FakeTensor,
    FakeTensorMode,
    active_fake_mode,
    is_any_autocast_enabled,
    storage_of,
    unset_fake_temporarily,
    version_of,
)


@dataclass(frozen=True)
class _Outcome:
    """What an operation gave: the metadata of a new tensor, or one of its arguments, and what was recorded on the way.

    Attributes:
        like: Shape, strides, dtype and device; for an argument, its place among them.
        writes: Whether it overwrites that argument, and nothing else.
        operations: The operations, None if no recorder watched. Their sources count from the first of them; `HELD`
            are those of the arguments, followed by the module's own.
        source: Which of their results it is; None if the recorder does not watch it.
    """

    like: tuple[Any, ...] | int
    writes: bool
    operations: list[Operation] | None
    source: Source | None

    def make(self, mode: FakeTensorMode, given: Any) -> Tensor | None:
        """A new fake tensor, or the argument; None if another argument shares memory with that."""
        if isinstance(self.like, int):
            tensors = _tensors(given)
            value = tensors[self.like]
            return None if self.writes and _is_shared(value, tensors) else value
        shape, stride, dtype, device = self.like
        with unset_fake_temporarily():
            empty = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        return FakeTensor(mode, empty, device)


class Derived:
    """Outcomes by what led to them: function or configuration of a layer, mode, and the metadata of the arguments.

    Only what gives one new tensor and changes nothing is kept, or what gives an argument, which it may overwrite;
    everything else runs each time.
    """

    def __init__(self) -> None:
        self._outcomes: dict[Any, _Outcome] = {}
        self._surroundings = _surroundings()
        self._shared = _SHARED.setdefault((self._surroundings, torch.backends.mha.get_fastpath_enabled()), {})
        self._barren: set[Any] = set()

    def call(
        self,
        target: Any,
        args: Any,
        kwargs: Any,
        mode: FakeTensorMode,
        recorder: Recorder,
        run: Callable[..., Any] | None = None,
    ) -> Any:
        """What a function or a layer of torch gives in `mode`, run or recalled.

        Args:
            target: The function or the layer.
            args: Its arguments.
            kwargs: The same.
            mode: Is active, except where a module runs on real values.
            recorder: Is active, too, and lists the operations.
            run: Calls it with these arguments; by default it calls itself.
        """
        run = run or target
        if target in self._barren or _in_context() or active_fake_mode() is not mode:
            return run(*args, **kwargs)
        is_layer = isinstance(target, nn.Module)
        asked = ("call_module" if is_layer else "call_function"), target, args, kwargs, recorder
        train = target.training if is_layer else None
        key = self.key(*asked, train=train)
        own = partial(own_tensors, target) if is_layer else list[Tensor]
        known = self.recall(key, mode, recorder, (args, kwargs), own)
        if known is not None:
            return known[0]
        held, start = own(), len(recorder.operations)
        before = [(tensor, version_of(tensor)) for tensor in _tensors((args, kwargs))]
        value = run(*args, **kwargs)
        written = [tensor for tensor, version in before if version_of(tensor) != version]
        if key is not None:
            same = key == self.key(*asked, train=train) and all(map(operator.is_, held, own()))
            alone = all(tensor is value for tensor in written)
            writes = bool(written)
            if not (same and alone and self.keep(key, (args, kwargs), value, recorder, start, held, writes=writes)):
                self._barren.add(target)
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
        if op not in ("call_module", "call_function", "call_method") or _surroundings() != self._surroundings:
            return None  # a forward may change settings on its way
        try:
            seen: dict[int, int] = {}
            given = _describe(args, seen, recorder), _describe(kwargs, seen, recorder)
            return op, target if train is None else _configuration(target, train), given
        except _UnclearError:
            return None

    def recall(
        self,
        key: Any,
        mode: FakeTensorMode,
        recorder: Recorder | None,
        given: Any,
        own: Callable[[], list[Tensor]] = list,
    ) -> tuple[Tensor, bool] | None:
        """What was given before, its operations recorded again; None if nothing was.

        Args:
            key: As `key` made it.
            mode: The fake tensor's.
            recorder: What lists the operations.
            given: The arguments.
            own: Gives the module's own tensors, of which each is as often there as it has names.

        Returns:
            A tensor like the one before, or an argument; and whether it overwrites that.
        """
        outcome = (self._outcomes.get(key) or self._shared.get(key)) if key is not None else None
        if outcome is None or (recorder is not None and outcome.operations is None):
            return None
        value = outcome.make(mode, given)
        if value is None:
            return None
        if recorder is not None and outcome.operations:
            start = len(recorder.operations)
            held = _sources(given, recorder) + [recorder.known.get(id(tensor)) for tensor in own()]
            recorder.operations += [one.take(_absolute, start, held) for one in outcome.operations]
            if outcome.source is not None:
                recorder.note([value], outcome.source[0] + start, outcome.source[1])
        return value, outcome.writes

    def keep(
        self,
        key: Any,
        given: Any,
        value: Any,
        recorder: Recorder | None,
        start: int,
        own: Sequence[Tensor] = (),
        *,
        writes: bool,
    ) -> bool:
        """Remember what an operation gave, if that is one new tensor or an argument as it was; whether it is.

        Not a new one that shares memory with the arguments or the module's own tensors.

        Args:
            key: As `key` made it, before the operation and after it.
            given: The arguments.
            value: What it gave.
            recorder: What listed its operations.
            start: How many operations there were before.
            own: The module's own tensors, as for `recall`.
            writes: Whether it may have overwritten what it gave, and nothing else.
        """
        if type(value) is not FakeTensor or not _is_ordinary(value):
            return False
        tensors = _tensors(given)
        like = next((place for place, one in enumerate(tensors) if one is value), None)
        if like is None and (value.requires_grad or value.storage_offset()):
            return False
        if _is_shared(value, (*tensors, *own)):
            return False
        operations, source = None, None
        if recorder is not None:
            made = recorder.operations[start:]
            held = _sources(given, recorder) + [recorder.known.get(id(tensor)) for tensor in own]
            if any(one is not None and one[0] >= start for one in held):
                return False  # a constant before, written to
            places = {one: (HELD, place) for place, one in enumerate(held) if one is not None}
            source = recorder.known.get(id(value))
            taken = chain([source], *(operation.sources for operation in made))
            if any(one is not None and one[0] < start and one not in places for one in taken):
                return False  # tensors that the key says nothing of
            if len(places) < len(held):
                return False  # it says nothing of which of them are the same, either
            operations = [one.take(_relative, start, places) for one in made]
            source = _relative(source, start, places)
        alias = like is not None
        outcome = _Outcome(_metadata(value) if like is None else like, alias and writes, operations, source)
        if not _is_known(key[1]):
            self._outcomes[key] = outcome
            return True
        if len(self._shared) >= _MOST_SHARED:
            self._shared.clear()
        self._shared[key] = outcome
        return True


_SHARED: dict[Any, dict[Any, _Outcome]] = {}
"""What is set around a transform -> the outcomes of functions and layers of torch, whoever called them."""


_MOST_SHARED = 2**14
"""How many of them are remembered, at most: some 2 KiB each."""


def _surroundings() -> Any:
    """The settings of torch that decide which operations its functions are made of, and what types these give."""
    cuda, mkldnn = torch.backends.cuda, torch.backends.mkldnn
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        mkldnn.enabled,
        torch.backends.cudnn.enabled,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


def _is_known(part: Any) -> bool:
    """Whether whatever is called, or is an instance of a class, in a key is of torch, Python, or our own.

    No user can redefine that.
    """
    if type(part) is tuple:
        return all(map(_is_known, part))
    if not callable(part):
        return True
    home = getattr(part, "__module__", None) or getattr(getattr(part, "__objclass__", part), "__module__", None) or ""
    return home.startswith("aimgraph.runtime.") or home.partition(".")[0] in _KNOWN


_KNOWN = frozenset(("torch", "_operator", "math", "builtins"))


def _relative(source: Source | None, start: int, places: dict[Source, Source]) -> Source | None:
    """A source as it is kept: counted from the operation `start`, or by its place among what was given."""
    return None if source is None else places.get(source, (source[0] - start, source[1]))


def _absolute(source: Source | None, start: int, held: list[Source | None]) -> Source | None:
    """The inverse of `_relative` at another `start`, with other tensors given."""
    if source is None:
        return None
    number, place = source
    return held[place] if number == HELD else (number + start, place)


def _sources(given: Any, recorder: Recorder) -> list[Source | None]:
    """Which tensors the arguments are, in the order of their first places; constants are left out."""
    known = (recorder.known.get(id(leaf)) for leaf in _tensors(given))
    return list(dict.fromkeys(source for source in known if source is not None))


class _UnclearError(Exception):
    """An argument whose influence can't be told from the outside."""


_CONSTANTS = frozenset(
    (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout)
)


def _describe(value: Any, seen: dict[int, int], recorder: Recorder | None) -> Any:
    """What an operation can see of a value, as something that can be looked up.

    Args:
        value: An argument, or part of one.
        seen: Identity of a tensor -> its place among those in the arguments; extended.
        recorder: What lists the operations; it knows nothing of constants.
    """
    if isinstance(value, Tensor):
        if type(value) is not FakeTensor or not _is_ordinary(value):
            raise _UnclearError
        known = recorder is None or id(value) in recorder.known
        return Tensor, _metadata(value), seen.setdefault(id(value), len(seen)) if known else None
    if type(value) in _CONSTANTS:
        return type(value), value
    if type(value) in (tuple, list, torch.Size):
        return type(value), tuple(_describe(item, seen, recorder) for item in value)
    if type(value) is dict:
        return dict, tuple((key, _describe(item, seen, recorder)) for key, item in value.items())
    if type(value) is slice:
        return slice, _describe((value.start, value.stop, value.step), seen, recorder)
    raise _UnclearError


def _in_context() -> bool:
    """Whether a forward has changed what operations do, beyond their arguments."""
    return torch.is_grad_enabled() or torch.is_inference_mode_enabled() or is_any_autocast_enabled()


def _is_ordinary(tensor: FakeTensor) -> bool:
    """Whether metadata is all there is to a tensor."""
    return (
        tensor.layout is torch.strided
        and tensor.constant is None
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_inference())
    )


def own_tensors(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module, each as often as it has names."""
    if not module._modules:
        return [one for held in (module._parameters, module._buffers) for one in held.values() if one is not None]
    named = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return [tensor for _, tensor in named]


def _metadata(tensor: Tensor) -> tuple[Any, ...]:
    device = tensor.fake_device if type(tensor) is FakeTensor else tensor.device
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, device


def _tensors(given: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(given) if isinstance(leaf, Tensor)]


def _is_shared(tensor: Tensor, others: Iterable[Tensor]) -> bool:
    """Whether another tensor is in the same memory."""
    storage = storage_of(tensor)
    return any(storage_of(other) == storage for other in others if other is not tensor)


def _configuration(module: nn.Module, train: bool, above: tuple[nn.Module, ...] = ()) -> Any:
    """Everything that decides what a module does to shapes, for one that holds constants, tensors and such modules."""
    attributes = vars(module)
    if "forward" in attributes or isinstance(module, torch.jit.ScriptModule):
        raise _UnclearError
    if any(module is one for one in above):  # what holds itself has no end
        raise _UnclearError
    above = (*above, module)
    kind: Hashable = type(module)  # type: ignore[assignment]
    found: list[Any] = [kind, kind.forward, train if _looks_at_mode(kind) else None]  # type: ignore[attr-defined]
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


def _looks_at_mode(kind: Any) -> bool:
    """Whether a module may look at its training flag: any but a layer of torch none of whose methods mentions it."""
    return not kind.__module__.startswith("torch.nn.modules.") or _mentions_mode(kind)


@cache  # of torch's own classes: those made for one parametrised module would keep it
def _mentions_mode(kind: Any) -> bool:
    methods = [value for base in kind.__mro__ if base is not nn.Module for value in vars(base).values()]
    return any("training" in method.__code__.co_names for method in methods if hasattr(method, "__code__"))
