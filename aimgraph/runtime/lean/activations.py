"""Activations of which one bit a value says the slope: that bit is kept in place of the value.

    ReLU, ReLU6, Hardtanh, clamp:   dL/dx = dL/dy where the flag is set, elsewhere 0
    LeakyReLU, PReLU:               dL/dx = dL/dy where the flag is set, elsewhere slope * dL/dy

torch's own backward functions run, on the flags as numbers in place of what the flags were asked of.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.lean.bits import Gradient, dense, packed, through_bits
from aimgraph.runtime.lean.forms import lean_form
from aimgraph.runtime.lean.step import Geometry, Kept, pays, run
from aimgraph.torch_private import CLAMP_PASSES_ENDS

aten = torch.ops.aten


@dataclass
class TwoSlopes:
    """An activation with one slope where a flag is set, and another one elsewhere.

    Attributes:
        function: Gives the output.
        flags: Of values, as booleans or as numbers that are 0 where no flag is set.
        gradient: What goes through.
        of_output: Whether the flags are asked of the output; otherwise of the input.
        like: How the flags lie in memory.
    """

    function: Callable[[Tensor], Tensor]
    flags: Callable[[Tensor], Tensor]
    gradient: Gradient
    of_output: bool = True
    like: Geometry = field(init=False)
    curved = False

    def forward(self, x: Tensor) -> tuple[Tensor, Kept]:
        """The output, and the bits."""
        bits = None if self.of_output else self._bits(x)
        output = self.function(x)
        return output, (self._bits(output) if bits is None else bits,)

    def _bits(self, tensor: Tensor) -> Tensor:
        shown = dense(tensor)
        self.like = Geometry.of(shown)
        return packed(shown, self.flags)

    def backward(self, grad: Tensor, *kept: Tensor) -> tuple[Tensor]:
        """The gradient of the input."""
        return (through_bits(grad, kept[0], self.like, self.gradient),)


def _ones(like: Tensor) -> Tensor:
    """The gradient by which torch's own backward function, which is fast, tells where it lets one through."""
    return like.new_ones(()).expand_as(like)


def _through(grad: Tensor, numbers: Tensor, above: float, out: Tensor | None) -> Tensor:
    """The gradient where a flag is set, elsewhere 0, be it finite or not."""
    return _called(aten.threshold_backward, out, grad, numbers, above)


def _between(grad: Tensor, numbers: Tensor, above: float, out: Tensor | None) -> Tensor:
    """The same, in the layout that `F.hardtanh` gives a gradient."""
    if out is not None:
        return _through(grad, numbers, above, out)
    return _called(aten.hardtanh_backward, None, grad, numbers, above, torch.inf)


def _called(backward: Any, out: Tensor | None, *args: Any) -> Tensor:
    """What a backward function gives, put into `out` if there is one."""
    found: Tensor = backward.default(*args) if out is None else backward.grad_input(*args, grad_input=out)
    return found


@lean_form(F.relu, torch.relu, methods=("relu",), modules=(nn.ReLU,))
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """`F.relu`."""
    if not pays(input, overwrites=inplace):
        return torch.relu_(input) if inplace else torch.relu(input)
    return run(relu_step(inplace), input, overwrites=inplace)


def relu_step(inplace: bool = False) -> TwoSlopes:
    """One call of `F.relu`."""
    return TwoSlopes(torch.relu_ if inplace else torch.relu, lambda y: y, _through)


@lean_form(F.relu_, torch.relu_, methods=("relu_",))
def relu_(input: Tensor) -> Tensor:
    """The same in place."""
    return relu(input, inplace=True)


@lean_form(F.hardtanh, modules=(nn.Hardtanh,))  # nn.ReLU6 is one
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """`F.hardtanh`."""
    if not pays(input, overwrites=inplace) or min_val > max_val:
        return F.hardtanh(input, min_val, max_val, inplace)
    return run(hardtanh_step(min_val, max_val, inplace), input, overwrites=inplace)


def hardtanh_step(min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> TwoSlopes:
    """One call of `F.hardtanh`. The output does not tell what was at a bound, where that is rounded."""
    return TwoSlopes(
        lambda x: F.hardtanh(x, min_val, max_val, inplace),
        lambda y: aten.hardtanh_backward(_ones(y), y, min_val, max_val),
        _between,
        of_output=False,
    )


@lean_form(F.relu6)
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """`F.relu6`."""
    return hardtanh(input, 0.0, 6.0, inplace)


@lean_form(torch.clamp, torch.clip, methods=("clamp", "clip"))
def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """`torch.clamp` between numbers."""
    low, high = -torch.inf if min is None else min, torch.inf if max is None else max
    if not pays(input) or not all(isinstance(one, int | float) for one in (low, high)):
        return torch.clamp(input, min, max)
    above = torch.ge if CLAMP_PASSES_ENDS or min is None else torch.gt
    below = torch.le if CLAMP_PASSES_ENDS or max is None else torch.lt
    step = TwoSlopes(
        lambda x: torch.clamp(x, min, max),
        lambda x: above(x, low).logical_and_(below(x, high)),
        _through,
        of_output=False,
    )
    return run(step, input)


@lean_form(F.leaky_relu, modules=(nn.LeakyReLU,))
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """`F.leaky_relu` with a slope of 0 or more, of which the output's sign is the input's."""
    if not pays(input, overwrites=inplace) or negative_slope < 0:
        return F.leaky_relu(input, negative_slope, inplace)
    step = TwoSlopes(
        lambda x: F.leaky_relu(x, negative_slope, inplace),
        lambda y: aten.leaky_relu_backward(_ones(y), y, 0.0, False),
        lambda grad, numbers, above, out: _called(
            aten.leaky_relu_backward, out, grad, numbers - above if above else numbers, negative_slope, False
        ),
    )
    return run(step, input, overwrites=inplace)


@dataclass
class _Slopes(TwoSlopes):
    """`F.prelu`: the slope elsewhere is that of the channel."""

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Kept]:  # type: ignore[override]
        return F.prelu(x, weight), (self._bits(x), weight)

    def backward(self, grad: Tensor, *kept: Tensor) -> tuple[Tensor]:
        bits, weight = kept
        slopes = weight.to(grad.dtype).reshape(-1, *[1] * (grad.dim() - 2))
        ones = through_bits(torch.ones_like(grad), bits, self.like, _through)
        return (aten._prelu_kernel_backward(grad, ones, slopes.expand(-1, *slopes.shape[1:]))[0],)


@lean_form(F.prelu, torch.prelu, modules=(nn.PReLU,))
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """`F.prelu` with slopes [1] or [C] that stand still."""
    if not pays(input, weight) or input.dim() < 2:
        return F.prelu(input, weight)
    return run(_Slopes(torch.clone, lambda x: x > 0, _through, of_output=False), input, weight)
