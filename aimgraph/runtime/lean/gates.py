"""Products of an activation and a gate: the activation's input is kept once, and its output computed again from it.

    y = f(z),  p = y * g:   dL/dy = dL/dp * g,  dL/dg = dL/dp * y,  dL/dz = dL/dy * f'(z)

torch keeps z for the second line's last gradient and y for that of g: squeeze-and-excitation, where f is SiLU or
Hardswish, keeps both of each block's widest features.
"""

import operator
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.lean.forms import lean_form
from aimgraph.runtime.lean.step import Kept, pays, run
from aimgraph.torch_private import WeakTensorKeyDictionary, version_of

aten = torch.ops.aten


@dataclass(frozen=True)
class _MadeFrom:
    """How to compute a tensor again.

    Attributes:
        function: Gives it.
        z: The input, which is kept in any case.
        versions: Of the tensor and the input, when it was computed.
    """

    function: Callable[[Tensor], Tensor]
    z: Tensor
    versions: tuple[int, int]


_MADE: MutableMapping[Any, _MadeFrom] = WeakTensorKeyDictionary()
"""An activation's output, as long as it lives -> what gives it once more."""


@dataclass
class _Activation:
    """An activation whose gradient needs its input."""

    function: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    overwrites: bool
    curved = True

    def forward(self, x: Tensor) -> tuple[Tensor, Kept]:
        self.z = x.detach().clone() if self.overwrites else x.detach()
        output = self.function(self.z)
        return x.copy_(output) if self.overwrites else output, (self.z,)

    def backward(self, grad: Tensor, *kept: Tensor) -> tuple[Tensor]:
        return (self.gradient(grad, kept[0].to(grad.dtype)),)


def _activated(
    x: Tensor, function: Callable[[Tensor], Tensor], gradient: Callable[[Tensor, Tensor], Tensor], overwrites: bool
) -> Tensor:
    step = _Activation(function, gradient, overwrites)
    output = run(step, x, overwrites=overwrites)
    z: Tensor = vars(step).pop("z")
    _MADE[output] = _MadeFrom(function, z, (version_of(output), version_of(z)))
    return output


@lean_form(F.silu, modules=(nn.SiLU,))
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """`F.silu`."""
    if not pays(input, overwrites=inplace):
        return F.silu(input, inplace)
    return _activated(input, F.silu, aten.silu_backward, inplace)


@lean_form(F.hardswish, modules=(nn.Hardswish,))
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """`F.hardswish`."""
    if not pays(input, overwrites=inplace):
        return F.hardswish(input, inplace)
    return _activated(input, F.hardswish, aten.hardswish_backward, inplace)


@lean_form(F.mish, modules=(nn.Mish,))
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """`F.mish`."""
    if not pays(input, overwrites=inplace):
        return F.mish(input, inplace)
    return _activated(input, F.mish, aten.mish_backward, inplace)


@lean_form(F.gelu, modules=(nn.GELU,))
def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """`F.gelu`."""
    if not pays(input):
        return F.gelu(input, approximate=approximate)
    return _activated(
        input,
        lambda z: F.gelu(z, approximate=approximate),
        lambda grad, z: aten.gelu_backward(grad, z, approximate=approximate),
        False,
    )


@dataclass
class _Product:
    """A product of two tensors, of which one or both can be computed again.

    Attributes:
        again: For each factor, what computes it again from what is kept; None for one that is kept itself.
    """

    again: tuple[Callable[[Tensor], Tensor] | None, ...]
    curved = True

    def forward(self, a: Tensor, b: Tensor, *kept: Tensor) -> tuple[Tensor, Kept]:
        return a * b, kept

    def backward(self, grad: Tensor, *kept: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (one if again is None else again(one) for again, one in zip(self.again, kept, strict=True))
        return (grad * b).sum_to_size(a.shape), (grad * a).sum_to_size(b.shape)


def _made_from(tensor: Tensor) -> _MadeFrom | None:
    found = _MADE.get(tensor)
    there = found is not None and found.versions == (version_of(tensor), version_of(found.z))
    return found if there else None


@lean_form(operator.mul, torch.mul, torch.multiply, torch.Tensor.mul, torch.Tensor.__mul__, methods=("mul",))
def mul(input: Any, other: Any) -> Any:
    """`torch.mul`, which keeps what a factor was made from in its place, where that is kept already."""
    factors = (input, other)
    if not all(isinstance(one, Tensor) and pays(one) for one in factors) or input.dtype != other.dtype:
        return input * other
    sources = [_made_from(one) for one in factors]
    if not any(sources):
        return input * other
    kept = [one.detach() if source is None else source.z for one, source in zip(factors, sources, strict=True)]
    again = tuple(None if source is None else source.function for source in sources)
    return run(_Product(again), input, other, *kept)
