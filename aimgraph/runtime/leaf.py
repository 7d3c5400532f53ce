"""Modules that are kept as one call because they can't be traced, with layers inside that read."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from aimgraph.runtime.checkpoints import checkpointed_as
from aimgraph.runtime.layers import AffineLayer, accumulate
from aimgraph.runtime.read import ReadSpec, batch_mean, fit, read_view

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
        layer: The layer that reads.
        read: Its read layer.
        spec: The layout of the view.
        mean: Whether it reads the batch mean of the value.
    """

    layer: AffineLayer
    read: nn.Module
    spec: ReadSpec
    mean: bool

    @property
    def rank(self) -> int:
        """Dimensions of the layer's input at the calls that this read serves."""
        return len(self.spec.grid) + 1 + (self.spec.batch_axis is not None)


class MemoryLeaf(nn.Module):
    """A module whose forward is called as it is, while layers inside it read a memory.

    It holds the module and the read layers without owning them, so nothing changes its name.

    Args:
        module: The module.
        reads: What is read inside it; one memory value each is given at a call.
        needs_values: Whether its forward depends on values, so that shapes alone can't run it.
    """

    def __init__(self, module: nn.Module, reads: list[LeafRead], *, needs_values: bool) -> None:
        super().__init__()
        self.reads = tuple(reads)
        self.borrowed = (module, tuple(read.read for read in reads))
        self.needs_values = needs_values

    def forward(self, values: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        """What the module gives, its layers' outputs summed with their reads.

        Args:
            values: One memory value, [B, N] or [1, N], per read.
            *args: The module's own arguments.
            **kwargs: The module's own arguments.
        """
        with _SWAP, self._swapped(values):
            return self.borrowed[0](*args, **kwargs)

    @contextmanager
    def _swapped(self, values: list[Tensor]) -> Iterator[None]:
        by_layer: dict[AffineLayer, list[tuple[LeafRead, Tensor]]] = {}
        for read, value in zip(self.reads, values, strict=True):
            by_layer.setdefault(read.layer, []).append((read, value))
        before = {layer: vars(layer).get("forward") for layer in by_layer}
        call = object()

        def reading(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                with _SWAP, nullcontext() if call in _RUNNING else self._swapped(values):
                    return function(*args, **kwargs)

            return run

        try:
            _RUNNING.add(call)
            for layer, reads in by_layer.items():
                vars(layer)["forward"] = _reading(layer.forward, reads)
            with checkpointed_as(reading):
                yield
        finally:
            _RUNNING.discard(call)
            for layer, forward in before.items():
                if forward is None:
                    vars(layer).pop("forward", None)
                else:
                    vars(layer)["forward"] = forward


def _reading(forward: Callable[..., Tensor], reads: list[tuple[LeafRead, Tensor]]) -> Callable[..., Tensor]:
    def read_and_forward(*args: Any, **kwargs: Any) -> Tensor:
        output = forward(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        rest = {key: value for key, value in kwargs.items() if key != "input"}
        for read, value in reads:
            if x.dim() == read.rank:
                shown = read_view(batch_mean(value) if read.mean else value, read.spec)
                view = fit(shown, x, read.spec.channel_axis, read.spec.batch_axis)
                output = accumulate(output, read.read(view, *args[1:], **rest))
        return output

    return read_and_forward
