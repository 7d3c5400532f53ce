"""Modules that are kept as one call because they can't be traced, with layers and functions inside that read."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from aimgraph.errors import PlanError
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.call_names import OPAQUE_BASE, CallNames, Frame, WatchFunctions, first_input, input_name
from aimgraph.runtime.function_read import FunctionRead, group_batch
from aimgraph.runtime.layer_kinds import is_layer
from aimgraph.runtime.layers import call_options, given_to
from aimgraph.runtime.reads.view import ViewSpec, at_rank, batch_mean, fit, read_view
from aimgraph.runtime.recompute import checkpointed_as
from aimgraph.torch_private import disable_dynamo, patched

_SWAP = threading.RLock()
"""One thread at a time has the layers of an opaque module swapped."""


_RUNNING: set[object] = set()
"""The calls during which they are."""


@contextmanager
def base_alone(root: nn.Module) -> Iterator[None]:
    """While the base's own forward runs, which may go over its children: what is added is none of them."""
    held, added = root._modules, OPAQUE_BASE.partition(".")[0]
    if added not in held:
        yield
        return
    vars(root)["_modules"] = {name: module for name, module in held.items() if name != added}
    try:
        yield
    finally:
        held |= root._modules  # what the forward has put there
        vars(root)["_modules"] = held


class OpaqueBase(nn.Module):
    """The base itself as one call, where its own forward can't be traced.

    Args:
        base: The base; it shares its modules and tensors with the emitted module, and is not registered here.
        needs_values: Whether its forward depends on values, so that shapes alone can't run it.
        reason: Why it is one call.
    """

    path = OPAQUE_BASE

    def __init__(self, base: nn.Module, *, needs_values: bool, reason: str = "") -> None:
        super().__init__()
        self.aim_borrowed = (base,)
        self.needs_values, self.reason = needs_values, reason

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base's own forward gives."""
        base = self.aim_borrowed[0]
        with _SWAP, base_alone(base):
            return base.forward(*args, **kwargs)


@dataclass(frozen=True)
class OpaqueReadCall:
    """How one call inside an opaque module reads.

    Attributes:
        spec: The layout of the view.
        mean: Whether it reads the batch mean of the value.
        grouped_batch: Whether the batch is folded into the channels of the call.
    """

    spec: ViewSpec
    mean: bool
    grouped_batch: bool

    @property
    def rank(self) -> int:
        """Dimensions of the site's input."""
        return len(self.spec.grid) + 1 + (self.spec.batch_axis is not None or self.grouped_batch)


@dataclass(frozen=True)
class OpaqueRead:
    """One read inside an opaque module.

    Attributes:
        site: Path of the layer that reads, or name of the function's call that does.
        read: Its read layer.
        calls: How each of the site's calls at one rank reads, in order.
        opaque: The module that is kept as one call in which it reads, and the number of that module's call; None where
            all that runs is one such call.
        view: Shows it the memory; None where a few operations do.
    """

    site: str
    read: nn.Module
    calls: tuple[OpaqueReadCall, ...]
    opaque: tuple[str, int] | None = None
    view: nn.Module | None = None

    def call(self, number: int) -> OpaqueReadCall | None:
        """How the call of this number reads; None where that can't be told from the others."""
        if number < len(self.calls):
            return self.calls[number]
        axes = {(call.spec.batch_axis, call.spec.channel_axis) for call in self.calls}
        return self.calls[-1] if len(axes) == 1 else None


Reads: TypeAlias = list[tuple[OpaqueRead, Tensor]]


Made: TypeAlias = Counter[tuple[str, int, tuple[str, int] | None]]


Then: TypeAlias = tuple[list[Frame], Made]


class OpaqueCall(nn.Module):
    """A module whose forward is called as it is, while layers and functions inside it read a memory.

    It looks the module up in the model at every call and does not own the read layers, so nothing changes its name.

    Args:
        root: The model; it shares its modules with the emitted module.
        path: Path of the module; `OPAQUE_BASE` for the model itself.
        reads: What is read inside it; one memory value each is given at a call.
        layers: Paths of the convolutions and linear layers whose calls count as theirs.
        needs_values: Whether its forward depends on values, so that shapes alone can't run it.
        reason: Why it is one call.
    """

    def __init__(
        self,
        root: nn.Module,
        path: str,
        reads: tuple[OpaqueRead, ...],
        layers: frozenset[str],
        *,
        needs_values: bool,
        reason: str = "",
    ) -> None:
        super().__init__()
        self.reads, self.layers, self.path = reads, layers, path
        self.aim_borrowed = (root, tuple(part for read in reads for part in (read.read, read.view) if part is not None))
        self.needs_values, self.reason = needs_values, reason

    def outside(self) -> Iterator[Tensor]:
        """The parameters and buffers of the model that are not the module's."""
        root = self.aim_borrowed[0]
        if self.path != OPAQUE_BASE:
            module = root.get_submodule(self.path)
            inside = {id(tensor) for tensor in chain(module.parameters(), module.buffers())}
            held = chain(root.parameters(), root.buffers())
            yield from (tensor for tensor in held if inside and id(tensor) not in inside)

    @disable_dynamo
    def forward(self, values: list[Tensor], /, *args: Any, **kwargs: Any) -> Any:
        """What the module gives, its sites' outputs summed with their reads.

        Args:
            values: One memory value, [B, N] or [1, N], per read.
            *args: The module's own arguments.
            **kwargs: The module's own arguments.
        """
        module = self.aim_borrowed[0].get_submodule(self.path)
        with _SWAP, self._reading(values, None):
            return module(*args, **kwargs)

    @contextmanager
    def _reading(self, values: list[Tensor], then: Then | None) -> Iterator[None]:
        """While the sites read these values.

        Args:
            values: One per read.
            then: The modules that ran and the calls that were made where this goes on; None at the beginning.
        """
        sites: dict[str, Reads] = {}
        for read, value in zip(self.reads, values, strict=True):
            sites.setdefault(read.site, []).append((read, value))
        watch, call = _Functions(self._names(), sites), object()
        if then is not None:
            watch.go_on(then)

        def again(function: Callable[..., Any]) -> Callable[..., Any]:
            """`function`, given the values first, with the same reads where a checkpoint runs it once more."""
            now, count = watch.now(), len(values)

            def run(*args: Any, **kwargs: Any) -> Any:
                shown = list(args[:count])
                with _SWAP, nullcontext() if call in _RUNNING else self._reading(shown, now):
                    return function(*args[count:], **kwargs)

            return run

        layers = [(layer, path) for layer, path in watch.names.paths.items() if path in sites and is_layer(layer)]
        swaps = [(layer, "forward", partial(_summed, layer, path, watch)) for layer, path in layers]
        try:
            _RUNNING.add(call)
            with patched(*swaps), checkpointed_as(again, values), watch:
                yield
        finally:
            _RUNNING.discard(call)

    def _names(self) -> CallNames:
        root = self.aim_borrowed[0]
        paths = {part: path for path, part in root.named_modules() if not isinstance(part, OpaqueBase | OpaqueCall)}
        return CallNames(root, paths, self.layers)


class _Functions(WatchFunctions):
    """Adds what is read to what is called. While it is there, torch's fused attention, which calls no layers, is not.

    Args:
        names: Names the calls.
        sites: What reads, by those names.
    """

    def __init__(self, names: CallNames, sites: dict[str, Reads]) -> None:
        super().__init__(names)
        self.sites = sites
        self.made: Made = Counter()
        self.aside = False

    def now(self) -> Then:
        """The modules that run and the calls that were made, to go on from later."""
        return self.names.now(), self.made.copy()

    def go_on(self, then: Then) -> None:
        """Go on from what `now` gave."""
        self.names.go_on(then[0])
        self.made = then[1].copy()

    def called(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The function's result with what its site reads."""
        output = function(*args, **kwargs)
        if self.aside or name in self.names.layers or name not in self.sites:
            return output
        given = given_to(function, args, kwargs)
        return self.sum(
            name, output, given["input"], (), call_options(given), (given["weight"], given.get("groups", 1))
        )

    def sum(
        self,
        name: str,
        output: Tensor,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        weight: tuple[Tensor, int] | None = None,
    ) -> Tensor:
        """A site's output plus what it reads at this call.

        Args:
            name: Of the site.
            output: What it gives.
            x: Its input.
            args: What it is called with besides.
            kwargs: What it is called with besides.
            weight: Of a function's call, with its groups.
        """
        if self.names.hidden:
            return output
        opaque = self.names.opaque
        key = name, x.dim(), opaque
        number = self.made[key]
        self.made[key] += 1
        ranks = {read.calls[0].rank for read, _ in self.sites[name] if read.opaque == opaque}
        rank = next(iter(ranks)) if len(ranks) == 1 else x.dim()
        for read, value in self.sites[name]:
            call = read.call(number) if (read.calls[0].rank, read.opaque) == (rank, opaque) else None
            if call is None or (weight is not None and not _serves(read, call, *weight)):
                continue
            axes = call.spec.channel_axis, call.spec.batch_axis
            self.aside = True
            try:
                shown = read_view(batch_mean(value) if call.mean else value, call.spec, read.view)
                if rank != x.dim() and at_rank(shown, x, *axes) is None:
                    continue
                term = read.read(fit(shown, x, *axes, name), *args, **kwargs)
            except RuntimeError as error:
                _check_types(name, read.read, x, error)
                raise
            finally:
                self.aside = False
            output = accumulate(output, group_batch(term, output) if call.grouped_batch else term)
        return output


def _check_types(name: str, read: nn.Module, x: Tensor, error: RuntimeError) -> None:
    """Name a site that is called in another type than its read weights have.

    Raises:
        PlanError: That is so.
    """
    kinds = {parameter.dtype for parameter in read.parameters()} - {x.dtype}
    if kinds and not torch.is_autocast_enabled(x.device.type):
        raise PlanError(
            f"{name}: the forward calls it in {x.dtype}, and its read weights are {kinds.pop()}: give layers their "
            f"types before the transform, not in the forward, or leave this one out: exclude=({name!r},)"
        ) from error


def _serves(read: OpaqueRead, call: OpaqueReadCall, weight: Tensor, groups: int) -> bool:
    assert isinstance(read.read, FunctionRead)
    return read.read.serves(weight, groups, grouped_batch=call.grouped_batch)


def _summed(layer: nn.Module, path: str, watch: _Functions, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    name = input_name(layer)

    def read_and_forward(*args: Any, **kwargs: Any) -> Tensor:
        output = forward(*args, **kwargs)
        if watch.names.module is not layer:  # nobody called the layer: what its forward calls is the caller's
            return output
        rest = {key: value for key, value in kwargs.items() if key != name}
        return watch.sum(path, output, first_input(layer, args, kwargs), args[1:], rest)

    return read_and_forward
