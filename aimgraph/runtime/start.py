"""How a memory starts: which factor of layer_m(m; Wm) is zero before training, and how large the other one is.

    zero_reads     Wm = 0, m drawn
    zero_values    m = 0, Wm drawn from U(-b, b), with b as `aimgraph.runtime.read_bounds` says
    drawn          Wm as the layer's own initialiser draws it, m drawn

With the first two the transformed network computes what the base computes. All draws are uniform, on the CPU and in
float32: these are the same numbers on every machine and device, which those of a normal distribution are not.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.errors import ConfigError
from aimgraph.reproducible import generator_of, kept_randomness, uniform
from aimgraph.runtime.memory import Memory
from aimgraph.runtime.state import StateCarry
from aimgraph.runtime.updates.update import Update


@dataclass(frozen=True)
class Start:
    """The start of one memory.

    Attributes:
        kind: ``zero_reads``, ``zero_values`` or ``drawn``.
        scale: Of what is drawn: the standard deviation of the values, or a factor on the read weights.
        stream: What the names of its random streams begin with.
    """

    kind: str
    scale: float = 1.0
    stream: str = ""

    @property
    def deviation(self) -> float:
        """Standard deviation of drawn values."""
        return 1.0 if self.kind == "zero_values" else self.scale

    def uniform(self, shape: tuple[int, ...], bound: float, name: str) -> Tensor:
        """Numbers from U(-bound, bound) of a stream of their own: no other draw changes them."""
        return uniform(shape, bound, generator_of(f"{self.stream}/{name}"))

    def within(self, name: str) -> "Start":
        """The same start with streams of another name."""
        return replace(self, stream=f"{self.stream}/{name}")


def zero_memory(memory: Memory, name: str) -> None:
    """Make the values of a memory zero, whatever writes them.

    Raises:
        ConfigError: A source, read or block of your own gives something else.
    """
    _zero(memory.source, "source", lambda: _gives_zeros(memory.source), name)
    for view in memory.views.children():
        if not _shows_zeros(view, _size(memory)):
            raise ConfigError(
                f'memory {name!r}: start="zero_values" needs a read that shows zeros as zeros, and {_named(view)} does '
                'not: leave out what it adds to the values, or use start="zero_reads"'
            )
    zero_updates(memory, name)


def zero_updates(memory: Memory, name: str) -> None:
    """Make the updates of a memory leave zeros as they are; see `zero_memory`."""
    for update in memory.updates:
        assert isinstance(update, Update)
        _zero(update, "block", update.writes_zeros, name, shown=getattr(update, "block", update))


def is_zero(memory: Memory) -> bool:
    """Whether all values of a memory are zero, and stay so in a forward."""
    states = [child for child in memory.children() if isinstance(child, StateCarry)]
    return (
        _gives_zeros(memory.source)
        and not any(bool(state.state.any()) for state in states)
        and all(_shows_zeros(view, _size(memory)) for view in memory.views.children())
        and all(isinstance(update, Update) and update.writes_zeros() for update in memory.updates)
    )


def _zero(part: nn.Module, role: str, done: Callable[[], bool], memory: str, *, shown: nn.Module | None = None) -> None:
    """Have a part made zero by its own ``zero_()``, if it has one, and look whether it is."""
    hook: Any = getattr(part, "zero_", None)
    with torch.no_grad():
        if callable(hook):
            hook()
    if not done():
        raise ConfigError(
            f'memory {memory!r}: start="zero_values" needs a {role} that gives zeros at the start, and '
            f"{_named(shown or part)} does not: give the class a method zero_() that makes it do so, or use "
            'start="zero_reads"'
        )


def _named(module: nn.Module) -> str:
    return type(module).__name__


def _size(memory: Memory) -> int:
    return int(memory.source().shape[-1])


def _gives_zeros(source: nn.Module) -> bool:
    with torch.no_grad(), kept_randomness():
        return _all_zero(source())


def _shows_zeros(view: nn.Module, size: int) -> bool:
    """Whether a read shows a memory of zeros as zeros, in train and in eval mode."""
    like = next(view.parameters(), torch.empty(0))
    with torch.no_grad(), kept_randomness():
        modes = (copy_module(view).train(train) for train in (True, False))
        return all(_all_zero(one(like.new_zeros(1, size))) for one in modes)


def _all_zero(values: Any) -> bool:
    return isinstance(values, Tensor) and (values.is_meta or not bool(values.any()))
