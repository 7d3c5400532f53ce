"""Convolutions with fixed weights: they keep their weight, and of their input its shape and layout.

    y = conv(x; W) + b,   dL/dx = conv_transposed(dL/dy; W)

`aten.convolution_backward` computes the gradient, as it does for torch's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.layers import call_options, given_to
from aimgraph.runtime.lean.forms import lean_form
from aimgraph.runtime.lean.step import Geometry, Kept, pays, run, sizes


@dataclass
class _Convolution:
    """One call.

    Attributes:
        function: Of torch, with all options.
        options: What `aten.convolution_backward` takes of these: stride, padding, dilation, whether it is transposed,
            output padding, groups.
        like: How the input lies in memory.
    """

    function: Callable[..., Tensor]
    options: tuple[Any, ...]
    like: Geometry = field(init=False)
    curved = False

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Kept]:
        self.like = Geometry.of(x)
        return self.function(x, weight, bias), (weight,)

    def backward(self, grad: Tensor, *kept: Tensor) -> tuple[Tensor]:
        weight = kept[0].to(grad.dtype)  # under autocast
        x, asked = self.like.empty(grad.dtype), [True, False, False]
        found: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, None, *self.options, asked)[0]
        return (found,)


_USUAL = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}


def _convolved(function: Callable[..., Tensor], args: Any, kwargs: Any, *, transposed: bool = False) -> Tensor:
    given = given_to(function, args, kwargs)
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    rank = weight.dim() - 2
    if x.dim() != rank + 2 or not pays(x, weight, bias):
        return function(*args, **kwargs)
    more, groups = call_options(given), given.get("groups", 1)
    if isinstance(more.get("padding"), str):
        x, more["padding"] = _padded(x, more["padding"], weight, sizes(more.get("dilation", 1), rank))
    stride, padding, dilation, further = (list(sizes(more.get(name, usual), rank)) for name, usual in _USUAL.items())
    options = (stride, padding, dilation, transposed, further, groups)
    return run(_Convolution(lambda *tensors: function(*tensors, groups=groups, **more), options), x, weight, bias)


def _padded(x: Tensor, padding: str, weight: Tensor, dilation: tuple[int, ...]) -> tuple[Tensor, list[int]]:
    """The input, and the padding in numbers that gives what a named padding does; as torch does it.

    Where a side needs one more than the other, the input is padded by that beforehand.
    """
    if padding != "same":
        return x, [0] * len(dilation)
    both = [far * (size - 1) for far, size in zip(dilation, weight.shape[2:], strict=True)]
    more = [total % 2 for total in both]
    if any(more):
        x = F.pad(x, [one for total in reversed(more) for one in (0, total)])
    return x, [total // 2 for total in both]


@lean_form(F.conv1d, modules=(nn.Conv1d,))
def conv1d(*args: Any, **kwargs: Any) -> Tensor:
    """`F.conv1d`."""
    return _convolved(F.conv1d, args, kwargs)


@lean_form(F.conv2d, modules=(nn.Conv2d,))
def conv2d(*args: Any, **kwargs: Any) -> Tensor:
    """`F.conv2d`."""
    return _convolved(F.conv2d, args, kwargs)


@lean_form(F.conv3d, modules=(nn.Conv3d,))
def conv3d(*args: Any, **kwargs: Any) -> Tensor:
    """`F.conv3d`."""
    return _convolved(F.conv3d, args, kwargs)


@lean_form(F.conv_transpose1d, modules=(nn.ConvTranspose1d,))
def conv_transpose1d(*args: Any, **kwargs: Any) -> Tensor:
    """`F.conv_transpose1d`."""
    return _convolved(F.conv_transpose1d, args, kwargs, transposed=True)


@lean_form(F.conv_transpose2d, modules=(nn.ConvTranspose2d,))
def conv_transpose2d(*args: Any, **kwargs: Any) -> Tensor:
    """`F.conv_transpose2d`."""
    return _convolved(F.conv_transpose2d, args, kwargs, transposed=True)


@lean_form(F.conv_transpose3d, modules=(nn.ConvTranspose3d,))
def conv_transpose3d(*args: Any, **kwargs: Any) -> Tensor:
    """`F.conv_transpose3d`."""
    return _convolved(F.conv_transpose3d, args, kwargs, transposed=True)
