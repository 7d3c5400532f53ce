"""Operations whose outcome on fake tensors is known, because the same was done to the same shapes before.

Networks repeat themselves: most of their layers differ in nothing that a fake tensor shows. And the same network is
often transformed again, with another memory: what functions and layers of torch give is remembered by the process.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.fake.keys import UnclearError, configuration, describe, is_known, is_ordinary, metadata, surroundings
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
        operations: The operations. Their sources count from the first of them; `HELD` are those of the arguments,
            followed by the module's own.
        source: Which of their results it is; None if the recorder does not watch it.
    """

    like: tuple[Any, ...] | int
    writes: bool
    operations: list[Operation]
    source: Source | None

    def make(self, mode: FakeTensorMode, given: Any) -> Tensor | None:
        """A new fake tensor, or the argument; None if another argument shares memory with that."""
        if isinstance(self.like, int):
            tensors = _tensors(given)
            value = tensors[self.like]
            return None if self.writes and _is_shared(value, tensors) else value
        shape, stride, dtype, device = self.like
        with nullcontext() if active_fake_mode() is None else unset_fake_temporarily():
            empty = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        return FakeTensor(mode, empty, device)


class Derived:
    """Outcomes by what led to them: function or configuration of a layer, mode, and the metadata of the arguments.

    Only what gives one new tensor and changes nothing is kept, or what gives an argument, which it may overwrite;
    everything else runs each time.
    """

    def __init__(self) -> None:
        self._outcomes: dict[Any, _Outcome] = {}
        self._barren: set[Any] = set()  # functions of which an outcome could not be kept
        self._surroundings = surroundings()
        self._shared = _SHARED.setdefault((self._surroundings, torch.backends.mha.get_fastpath_enabled()), {})

    def call(
        self, target: Any, args: Any, kwargs: Any, call: Callable[..., Any], mode: FakeTensorMode, recorder: Recorder
    ) -> Any:
        """What a function or a layer of torch gives in `mode`, run or recalled.

        Args:
            target: The function or the layer.
            args: Its arguments.
            kwargs: The same.
            call: Calls it with these arguments.
            mode: Is active, except where a module runs on real values.
            recorder: Is active, too, and lists the operations.
        """
        if target in self._barren or _in_context() or active_fake_mode() is not mode:
            return call(*args, **kwargs)
        key = partial(self.key, target, args, kwargs, recorder)
        own = partial(own_tensors, target) if isinstance(target, nn.Module) else list[Tensor]
        return self.run(key, (args, kwargs), own, mode, recorder, partial(call, *args, **kwargs))[0]

    def run(
        self,
        key: Callable[[], Any],
        given: Any,
        own: Callable[[], list[Tensor]],
        mode: FakeTensorMode,
        recorder: Recorder,
        call: Callable[[], Any],
    ) -> tuple[Any, list[Tensor]]:
        """What an operation gives, run or recalled, and which of its arguments it overwrites.

        Args:
            key: Gives what `key` gives for it, or None; asked again after it has run.
            given: Its arguments.
            own: Gives the module's own tensors, of which each is as often there as it has names.
            mode: The fake tensors'.
            recorder: What lists its operations.
            call: Runs it.
        """
        asked = key()
        known = self.recall(asked, given, own, mode, recorder)
        if known is not None:
            return known
        start, before = len(recorder.operations), [(tensor, version_of(tensor)) for tensor in _tensors(given)]
        value = call()
        written = [tensor for tensor, version in before if version_of(tensor) != version]
        if asked is not None and all(tensor is value for tensor in written) and asked == key():
            self.keep(asked, given, own(), value, recorder, start, writes=bool(written))
        return value, written

    def key(self, target: Any, args: Any, kwargs: Any, recorder: Recorder, *, train: bool | None = None) -> Any:
        """What an outcome depends on; None if that can't be told.

        Args:
            target: The module, the function, or the method's name.
            args: Its arguments.
            kwargs: The same.
            recorder: What lists its operations; it depends on which arguments the recorder watches.
            train: The mode that a module is to run in; that of each module in it by default.
        """
        if surroundings() != self._surroundings:
            return None  # a forward may change settings on its way
        try:
            given = describe((args, kwargs), {}, recorder.known)
            return configuration(target, train) if isinstance(target, nn.Module) else target, given
        except UnclearError:
            return None

    def recall(
        self, key: Any, given: Any, own: Callable[[], list[Tensor]], mode: FakeTensorMode, recorder: Recorder
    ) -> tuple[Tensor, list[Tensor]] | None:
        """What `run` gave before, its operations recorded again; None if nothing was."""
        outcome = self._outcomes.get(key) or self._shared.get(key)
        value = None if outcome is None else outcome.make(mode, given)
        if outcome is None or value is None:
            return None
        if outcome.operations:
            start = len(recorder.operations)
            held = _sources(given, own(), recorder)
            recorder.operations += [one.take(_absolute, start, held) for one in outcome.operations]
            if outcome.source is not None:
                recorder.note([value], outcome.source[0] + start, outcome.source[1])
        return value, [value] if outcome.writes else []

    def keep(
        self, key: Any, given: Any, own: Sequence[Tensor], value: Any, recorder: Recorder, start: int, *, writes: bool
    ) -> None:
        """Remember what an operation gave, if that is one new tensor or an argument as it was.

        Not a new one that shares memory with the arguments or the module's own tensors.

        Args:
            key: As `key` made it, before the operation and after it.
            given: The arguments.
            own: The module's own tensors.
            value: What it gave.
            recorder: What listed its operations.
            start: How many operations there were before.
            writes: Whether it has overwritten what it gave.
        """
        tensors = _tensors(given)
        like = next((place for place, one in enumerate(tensors) if one is value), None)
        plain = type(value) is FakeTensor and is_ordinary(value) and not _is_shared(value, (*tensors, *own))
        fits = plain and (like is not None or not (value.requires_grad or value.storage_offset()))
        recorded = _since(recorder, start, _sources(given, own, recorder), value) if fits else None
        if recorded is None:
            self._barren.add(key[0])
            return
        outcomes = self._shared if is_known(key[0]) else self._outcomes
        if len(outcomes) >= _MOST:
            outcomes.clear()
        outcomes[key] = _Outcome(metadata(value) if like is None else like, writes, *recorded)


_SHARED: dict[Any, dict[Any, _Outcome]] = {}
"""What is set around a transform -> the outcomes of functions and layers of torch, whoever called them."""

_MOST = 2**14
"""How many of them are remembered, at most: some 2 KiB each."""


def _since(
    recorder: Recorder, start: int, held: Sequence[Source | None], value: Tensor
) -> tuple[list[Operation], Source | None] | None:
    """The operations since `start` and the source of `value`, as they are kept; None if a key says too little of them.

    Args:
        recorder: What listed them.
        start: How many operations there were before.
        held: What `_sources` gives.
        value: What came of it.
    """
    made = recorder.operations[start:]
    if any(one is not None and one[0] >= start for one in held):
        return None  # a constant before, written to
    places = {one: (HELD, place) for place, one in enumerate(held) if one is not None}
    source = recorder.known.get(id(value))
    taken = chain([source], *(operation.sources for operation in made))
    if any(one is not None and one[0] < start and one not in places for one in taken):
        return None  # tensors that the key says nothing of
    if len(places) < len(held):
        return None  # it says nothing of which of them are the same, either
    return [one.take(_relative, start, places) for one in made], _relative(source, start, places)


def _relative(source: Source | None, start: int, places: dict[Source, Source]) -> Source | None:
    """A source as it is kept: counted from the operation `start`, or by its place among what was given."""
    return None if source is None else places.get(source, (source[0] - start, source[1]))


def _absolute(source: Source | None, start: int, held: list[Source | None]) -> Source | None:
    """The inverse of `_relative` at another `start`, with other tensors given."""
    if source is None:
        return None
    number, place = source
    return held[place] if number == HELD else (number + start, place)


def _sources(given: Any, own: Sequence[Tensor], recorder: Recorder) -> list[Source | None]:
    """Which tensors the arguments are, in the order of their first places, without constants; then a module's own."""
    known = dict.fromkeys(recorder.known.get(id(leaf)) for leaf in _tensors(given))
    known.pop(None, None)
    return [*known, *(recorder.known.get(id(tensor)) for tensor in own)]


def _in_context() -> bool:
    """Whether a forward has changed what operations do, beyond their arguments."""
    return torch.is_grad_enabled() or torch.is_inference_mode_enabled() or is_any_autocast_enabled()


def own_tensors(module: nn.Module) -> list[Tensor]:
    """The tensors of a module and of those that it holds, without owning them or not, each as often as it has names."""
    own = [one for held in (module._parameters, module._buffers) for one in held.values() if one is not None]
    parts = [*module._modules.values(), *leaves(vars(module).get("aim_borrowed", ()))]
    return own + [tensor for part in parts if part is not None for tensor in own_tensors(part)]


def _tensors(given: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(given) if isinstance(leaf, Tensor)]


def _is_shared(tensor: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether another tensor is in the same memory."""
    storage = storage_of(tensor)
    return any(storage_of(other) == storage for other in others if other is not tensor)
