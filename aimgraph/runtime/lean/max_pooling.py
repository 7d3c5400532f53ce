"""Max pooling: the largest of a window keeps its place in the window, in a byte.

torch's own backward function takes the index of each in the plane, an int64. That is the index of the window's first
place, the same for all planes, and the way from there, which the place in the window gives.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.lean.forms import lean_form
from aimgraph.runtime.lean.step import Geometry, Kept, by_name, pays, run, sizes

aten = torch.ops.aten
_MAX = {
    2: (aten.max_pool2d_with_indices, aten.max_pool2d_with_indices_backward),
    3: (aten.max_pool3d_with_indices, aten.max_pool3d_with_indices_backward),
}


@dataclass(frozen=True)
class _Step:
    """One axis of a window: ``number -> number - place * way, place * other``.

    The place is ``number // way``, as a product and a shift, which are faster than a division.

    Attributes:
        way: How far apart two places are in what is given.
        other: How far apart they are in what is wanted.
        count: Places of the window along this axis.
    """

    way: int
    other: int
    count: int

    @property
    def shift(self) -> int:
        """Of the product."""
        return 30 - self.count.bit_length()

    @property
    def factor(self) -> int:
        """``2 ** shift / way``, rounded up."""
        return -(-(1 << self.shift) // self.way)

    def holds(self, number: int, place: int) -> bool:
        """Whether it gives the place, without an overflow."""
        product = number * self.factor
        return product < 2**31 and product >> self.shift == place


_Code = tuple[_Step, ...]


def _recoded(rest: Tensor, code: _Code) -> Tensor:
    """Numbers, int32, in which each step has its other distance."""
    found = None
    for step in code:
        places = rest.mul(step.factor).bitwise_right_shift_(step.shift)
        rest.sub_(places, alpha=step.way)
        found = places.mul_(step.other) if found is None else found.add_(places, alpha=step.other)
    return rest if found is None else found.add_(rest)


@dataclass(frozen=True)
class _Window:
    """Windows over planes of a size, row-major.

    Attributes:
        size: Of the window, along each axis.
        stride: Of the windows.
        padding: Around the plane.
        dilation: Of the places in a window.
        plane: Size of the plane.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    plane: tuple[int, ...]

    def starts(self, like: Tensor) -> Tensor:
        """Index of the first place of each window, int32 of the shape of a plane of windows."""
        found = torch.zeros((), dtype=torch.int32, device=like.device)
        for axis, count in enumerate(like.shape[-len(self.size) :]):
            places = torch.arange(count, dtype=torch.int32, device=like.device)
            along = (places * self.stride[axis] - self.padding[axis]) * math.prod(self.plane[axis + 1 :])
            found = found + along.view(-1, *[1] * (len(self.size) - 1 - axis))
        return found

    def offsets(self, indices: Tensor) -> Tensor:
        """Places in their windows of indices in the plane, uint8."""
        codes = _codes(self)
        assert codes is not None
        return _recoded(indices.to(torch.int32).sub_(self.starts(indices)), codes[0]).to(torch.uint8)

    def indices(self, offsets: Tensor) -> Tensor:
        """The indices of such places, int64."""
        codes = _codes(self)
        assert codes is not None
        return _recoded(offsets.to(torch.int32), codes[1]).add_(self.starts(offsets)).to(torch.int64)


@cache
def _codes(window: _Window) -> tuple[_Code, _Code] | None:
    """From the way to a place in its plane to its number, and back; None where that is no byte, or not one place."""
    if math.prod(window.size) > 256 or math.prod(window.plane) >= 2**30:
        return None
    ways = [far * math.prod(window.plane[axis + 1 :]) for axis, far in enumerate(window.dilation)]
    numbers = [math.prod(window.size[axis + 1 :]) for axis in range(len(window.size))]
    there, back = _code(ways, numbers, window.size), _code(numbers, ways, window.size)
    return None if there is None or back is None else (there, back)


def _code(ways: list[int], others: list[int], size: tuple[int, ...]) -> _Code | None:
    steps = [_Step(*step) for step in zip(ways, others, size, strict=True)]
    for place in itertools.product(*map(range, size)):
        rest = sum(a * b for a, b in zip(place, ways, strict=True))
        for step, along in zip(steps, place, strict=True):
            if not step.holds(rest, along):
                return None
            rest -= along * step.way
    return tuple(step for step in steps if (step.way, step.other) != (1, 1))


@dataclass
class _Max:
    """The largest of each window."""

    window: _Window
    ceil_mode: bool
    like: Geometry = field(init=False)
    curved = False

    @property
    def _options(self) -> tuple[Any, ...]:
        one = self.window
        return list(one.size), list(one.stride), list(one.padding), list(one.dilation), self.ceil_mode

    def forward(self, x: Tensor) -> tuple[Tensor, Kept]:
        self.like = Geometry.of(x)
        output, indices = _MAX[len(self.window.size)][0](x, *self._options)
        return output, (self.window.offsets(indices),)

    def backward(self, grad: Tensor, *kept: Tensor) -> tuple[Tensor]:
        indices = self.window.indices(kept[0])
        return (_MAX[len(self.window.size)][1](grad, self.like.empty(grad.dtype), *self._options, indices),)


_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def _max_pooled(function: Callable[..., Any], rank: int, args: Any, kwargs: Any) -> Any:
    given = by_name(_ARGUMENTS, args, kwargs)
    x, size = given["input"], sizes(given["kernel_size"], rank)
    usual = ("stride", size), ("padding", 0), ("dilation", 1)
    stride, padding, dilation = (sizes(given.get(name) or value, rank) for name, value in usual)
    step = _Max(_Window(size, stride, padding, dilation, tuple(x.shape[-rank:])), bool(given.get("ceil_mode")))
    if given.get("return_indices") or x.dim() != rank + 2 or not pays(x) or _codes(step.window) is None:
        return function(*args, **kwargs)
    return run(step, x)


@lean_form(F.max_pool1d, torch.max_pool1d, modules=(nn.MaxPool1d,))
def max_pool1d(*args: Any, **kwargs: Any) -> Any:
    """`F.max_pool1d`, as torch does it: over a plane of one row."""
    given = by_name(_ARGUMENTS, args, kwargs)
    x = given.pop("input")
    if given.get("return_indices") or x.dim() != 3 or not pays(x):
        return F.max_pool1d(*args, **kwargs)
    in_a_row = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    given |= {name: (one, *sizes(given[name], 1)) for name, one in in_a_row.items() if given.get(name)}
    return max_pool2d(x.unsqueeze(-2), **given).squeeze(-2)


@lean_form(F.max_pool2d, torch.max_pool2d, modules=(nn.MaxPool2d,))
def max_pool2d(*args: Any, **kwargs: Any) -> Any:
    """`F.max_pool2d`."""
    return _max_pooled(F.max_pool2d, 2, args, kwargs)


@lean_form(F.max_pool3d, torch.max_pool3d, modules=(nn.MaxPool3d,))
def max_pool3d(*args: Any, **kwargs: Any) -> Any:
    """`F.max_pool3d`."""
    return _max_pooled(F.max_pool3d, 3, args, kwargs)
