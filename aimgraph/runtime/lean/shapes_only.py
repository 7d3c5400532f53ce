"""Functions of which torch keeps the input for its shape: mean pooling and padding. They keep nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.lean.forms import lean_form
from aimgraph.runtime.lean.step import Geometry, Kept, by_name, pays, run, sizes

aten = torch.ops.aten


@dataclass
class _ShapeOnly:
    """One call.

    Attributes:
        function: Of the input.
        gradient: torch's own, of the output's gradient and an input whose values it does not read.
        like: How the input lies in memory.
    """

    function: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    like: Geometry = field(init=False)
    curved = False

    def forward(self, x: Tensor) -> tuple[Tensor, Kept]:
        self.like = Geometry.of(x)
        return self.function(x), ()

    def backward(self, grad: Tensor, *kept: Tensor) -> tuple[Tensor]:
        return (self.gradient(grad, self.like.empty(grad.dtype)),)


_OF_MEANS = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_USUAL = {"padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}


def _averaged(function: Callable[..., Tensor], backward: Any, rank: int, args: Any, kwargs: Any) -> Tensor:
    given = _USUAL | by_name(_OF_MEANS, args, kwargs)
    x = given.pop("input")
    if x.dim() != rank + 2 or not pays(x):
        return function(*args, **kwargs)
    size = sizes(given["kernel_size"], rank)
    stride, padding = sizes(given.get("stride") or size, rank), sizes(given["padding"], rank)
    options = (list(size), list(stride), list(padding), *(given[name] for name in _OF_MEANS[4:]))
    step = _ShapeOnly(lambda x: function(x, *options), lambda grad, like: backward(grad, like, *options))
    return run(step, x)


@lean_form(F.avg_pool2d, modules=(nn.AvgPool2d,))
def avg_pool2d(*args: Any, **kwargs: Any) -> Tensor:
    """`F.avg_pool2d`."""
    return _averaged(F.avg_pool2d, aten.avg_pool2d_backward, 2, args, kwargs)


@lean_form(F.avg_pool3d, modules=(nn.AvgPool3d,))
def avg_pool3d(*args: Any, **kwargs: Any) -> Tensor:
    """`F.avg_pool3d`."""
    return _averaged(F.avg_pool3d, aten.avg_pool3d_backward, 3, args, kwargs)


@lean_form(F.avg_pool1d, torch.avg_pool1d, modules=(nn.AvgPool1d,))
def avg_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """`F.avg_pool1d`, as torch does it: the mean over a plane of one row."""
    if not pays(input) or input.dim() != 3:
        return F.avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)
    size, step = sizes(kernel_size, 1), sizes(stride or kernel_size, 1)
    options = (1, *size), (1, *step), (0, *sizes(padding, 1)), ceil_mode, count_include_pad
    return avg_pool2d(input.unsqueeze(-2), *options).squeeze(-2)


def _adaptively(function: Callable[..., Tensor], backward: Any, rank: int, input: Tensor, output_size: Any) -> Tensor:
    if input.dim() != rank + 2 or not pays(input) or all(size == 1 for size in sizes(output_size, rank)):
        return function(input, output_size)  # to one place it is a mean, which keeps nothing
    return run(_ShapeOnly(lambda x: function(x, output_size), backward), input)


@lean_form(F.adaptive_avg_pool2d, modules=(nn.AdaptiveAvgPool2d,))
def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """`F.adaptive_avg_pool2d`."""
    return _adaptively(F.adaptive_avg_pool2d, aten._adaptive_avg_pool2d_backward, 2, input, output_size)


@lean_form(F.adaptive_avg_pool3d, modules=(nn.AdaptiveAvgPool3d,))
def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """`F.adaptive_avg_pool3d`."""
    return _adaptively(F.adaptive_avg_pool3d, aten._adaptive_avg_pool3d_backward, 3, input, output_size)


@lean_form(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, modules=(nn.AdaptiveAvgPool1d,))
def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """`F.adaptive_avg_pool1d`, as torch does it: the mean over a plane of one row."""
    if not pays(input) or input.dim() != 3:
        return F.adaptive_avg_pool1d(input, output_size)
    return adaptive_avg_pool2d(input.unsqueeze(-2), (1, *sizes(output_size, 1))).squeeze(-2)


_PADS = {"reflect": "reflection", "replicate": "replication"}


_REFLECTION = nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d
_REPLICATION = nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d


@lean_form(F.pad, modules=(*_REFLECTION, *_REPLICATION))
def pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """`F.pad`, which keeps its input where what it adds is a copy of it."""
    rank = len(pad) // 2
    backward = getattr(aten, f"{_PADS.get(mode)}_pad{rank}d_backward", None)
    if backward is None or input.dim() != rank + 2 or not pays(input):
        return F.pad(input, pad, mode, value)
    return run(_ShapeOnly(lambda x: F.pad(x, pad, mode), lambda grad, like: backward(grad, like, list(pad))), input)
