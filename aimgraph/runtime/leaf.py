"""Modules that are kept as one call because they can't be traced, with layers and functions inside that read."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from aimgraph.runtime.checkpoints import checkpointed_as
from aimgraph.runtime.function import FunctionRead, fold_batch
from aimgraph.runtime.layers import AffineLayer, accumulate, parameter_names
from aimgraph.runtime.read import ReadSpec, batch_mean, fit, read_view
from aimgraph.runtime.watch import CallNames, Stack, WatchFunctions

_SWAP = threading.RLock()
"""One thread at a time has the layers of a leaf swapped."""

_RUNNING: set[object] = set()
"""The calls during which they are."""


class Whole(nn.Module):
    """The base itself as one call, where its own forward can't be traced.

    Args:
        base: The base; it shares its modules and tensors with the emitted module, and is not registered here.
        needs_values: Whether its forward depends on values, so that shapes alone can't run it.
    """

    def __init__(self, base: nn.Module, *, needs_values: bool) -> None:
        super().__init__()
        self.borrowed = (base,)
        self.needs_values = needs_values

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base's own forward gives."""
        return self.borrowed[0].forward(*args, **kwargs)


@dataclass(frozen=True)
class LeafRead:
    """One read inside a leaf.

    Attributes:
        site: The layer that reads, or the name of the function call that does.
        read: Its read layer.
        spec: The layout of the view.
        mean: Whether it reads the batch mean of the value.
        folded: Whether the batch is folded into the channels of the call.
    """

    site: AffineLayer | str
    read: nn.Module
    spec: ReadSpec
    mean: bool
    folded: bool = False

    @property
    def rank(self) -> int:
        """Dimensions of the layer's input at the calls that this read serves."""
        return len(self.spec.grid) + 1 + (self.spec.batch_axis is not None or self.folded)

    def add_to(self, output: Tensor, value: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The site's output plus its read of a memory value; the output itself at another kind of call.

        Args:
            output: What the site gives.
            value: [B, N] or [1, N].
            x: The site's input.
            *args: What the site is called with besides.
            **kwargs: What the site is called with besides.
        """
        if x.dim() != self.rank:
            return output
        shown = read_view(batch_mean(value) if self.mean else value, self.spec)
        term = self.read(fit(shown, x, self.spec.channel_axis, self.spec.batch_axis), *args, **kwargs)
        return accumulate(output, fold_batch(term, output) if self.folded else term)


Reads = list[tuple[LeafRead, Tensor]]


class MemoryLeaf(nn.Module):
    """A module whose forward is called as it is, while layers and functions inside it read a memory.

    It holds the module and the read layers without owning them, so nothing changes its name.

    Args:
        module: The module.
        path: Its path in the model; empty for the whole model, of which `module` then is the `Whole`.
        reads: What is read inside it; one memory value each is given at a call.
        layers: Paths of the convolutions and linear layers in it whose calls count as theirs.
        needs_values: Whether its forward depends on values, so that shapes alone can't run it.
    """

    def __init__(
        self, module: nn.Module, path: str, reads: list[LeafRead], layers: frozenset[str], *, needs_values: bool
    ) -> None:
        super().__init__()
        self.reads = tuple(reads)
        self.borrowed = (module, tuple(read.read for read in reads))
        self.path, self.layers = path, layers
        self.needs_values = needs_values

    def forward(self, values: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        """What the module gives, its sites' outputs summed with their reads.

        Args:
            values: One memory value, [B, N] or [1, N], per read.
            *args: The module's own arguments.
            **kwargs: The module's own arguments.
        """
        with _SWAP, self._reading(values, None):
            return self.borrowed[0](*args, **kwargs)

    @contextmanager
    def _reading(self, values: list[Tensor], stack: Stack | None) -> Iterator[None]:
        """While the sites read these values.

        Args:
            values: One per read.
            stack: The modules that ran and the calls they had made where this goes on; None at the beginning.
        """
        sites: dict[AffineLayer | str, Reads] = {}
        for read, value in zip(self.reads, values, strict=True):
            sites.setdefault(read.site, []).append((read, value))
        names, call = self._names(), object()
        if stack is not None:
            names.go_on(stack)

        def again(function: Callable[..., Any]) -> Callable[..., Any]:
            """`function`, with the same reads where a checkpoint runs it once more."""
            then = names.now()

            def run(*args: Any, **kwargs: Any) -> Any:
                with _SWAP, nullcontext() if call in _RUNNING else self._reading(values, then):
                    return function(*args, **kwargs)

            return run

        swapped: list[tuple[nn.Module, str, Any]] = []
        try:
            _RUNNING.add(call)
            by_name = any(isinstance(site, str) for site in sites)
            for module in names.paths:
                if by_name:
                    swapped.append(_swap(module, "_call_impl", _named(module._call_impl, module, names)))
                if module in sites:
                    swapped.append(_swap(module, "forward", _summed(module.forward, sites[module], names)))
            with checkpointed_as(again), _Functions(names, sites):
                yield
        finally:
            _RUNNING.discard(call)
            for module, name, before in reversed(swapped):
                if before is None:
                    vars(module).pop(name, None)
                else:
                    vars(module)[name] = before

    def _names(self) -> CallNames:
        module = self.borrowed[0]
        root = module.borrowed[0] if isinstance(module, Whole) else module
        paths = {
            part: ".".join(filter(None, (self.path, below)))
            for below, part in root.named_modules()
            if not isinstance(part, Whole | MemoryLeaf)
        }
        return CallNames(root, paths, self.layers)


class _Functions(WatchFunctions):
    """Adds the reads of function calls. While it is there, torch's fused attention, which calls no layers, is not."""

    def __init__(self, names: CallNames, sites: dict[AffineLayer | str, Reads]) -> None:
        super().__init__(names)
        self.sites = sites

    def called(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The function's result with what its site reads."""
        output = function(*args, **kwargs)
        reads = self.sites.get(name)
        if reads is None:
            return output
        given = dict(zip(parameter_names(function), args, strict=False)) | kwargs
        own = {key: value for key, value in given.items() if key not in ("input", "weight", "bias", "groups")}
        for read, value in reads:
            weight, groups = given["weight"], given.get("groups", 1)
            if isinstance(read.read, FunctionRead) and read.read.serves(weight, groups, folded=read.folded):
                output = read.add_to(output, value, given["input"], **own)
        return output


def _swap(module: nn.Module, name: str, value: Any) -> tuple[nn.Module, str, Any]:
    """Set an attribute of one instance; gives back what has to be put there afterwards."""
    before = vars(module).get(name)
    vars(module)[name] = value
    return module, name, before


def _named(call: Callable[..., Any], module: nn.Module, names: CallNames) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with names.inside(module):
            return call(*args, **kwargs)

    return inside


def _summed(forward: Callable[..., Tensor], reads: Reads, names: CallNames) -> Callable[..., Tensor]:
    def read_and_forward(*args: Any, **kwargs: Any) -> Tensor:
        output = forward(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        rest = {key: value for key, value in kwargs.items() if key != "input"}
        with names.inside(None):
            for read, value in reads:
                output = read.add_to(output, value, x, *args[1:], **rest)
        return output

    return read_and_forward
