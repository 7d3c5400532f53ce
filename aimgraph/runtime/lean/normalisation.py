"""Batch normalisation by statistics that stand still: it keeps its scale, and nothing of the features.

    y = (x - mean) / sqrt(var + eps) * w + b
    dL/dx = dL/dy / sqrt(var + eps) * w

torch's own backward function computes the gradient; where the features were channels-last, which is slow there, two
products give the same bits.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.runtime.lean.forms import lean_form
from aimgraph.runtime.lean.step import Geometry, Kept, is_written, pays, run

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Dimensions of features -> their memory format with channels last."""

_CACHED = 1 << 20
"""Numbers that stay in a processor's cache."""


@dataclass
class Normalisation:
    """One call."""

    eps: float
    like: Geometry = field(init=False)
    curved = False

    def forward(
        self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Kept]:
        """The output, the variance, and the weight if there is one."""
        self.like = Geometry.of(x)
        output = F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)
        return output, (var,) if weight is None else (var, weight)

    def backward(self, grad: Tensor, *kept: Tensor) -> tuple[Tensor]:
        """The gradient of the input."""
        if grad.numel() and is_written(grad) and Geometry.of(grad) == self.like and grad.is_contiguous():
            return (_own_gradient(grad, kept[0], kept[1] if len(kept) > 1 else None, self.eps),)
        var, *weights = (one.float() if one.dtype.itemsize < 4 else one for one in kept)
        inverse = inverse_deviation(var, self.eps)
        scale = _by_channel(inverse, grad)
        if not is_written(grad):
            found = grad * scale
            return (found * _by_channel(weights[0], grad) if weights else found,)
        found = _laid_out(self.like, torch.result_type(grad, scale))
        factors, samples = [_by_channel(weight, grad) for weight in weights], _samples(grad)
        for given, out in zip(grad.split(samples), found.split(samples), strict=True):
            torch.mul(given, scale, out=out)
            for factor in factors:
                out.mul_(factor)
        return (found,)


def _samples(grad: Tensor) -> int:
    """How many at a time, so that the second product finds in the cache what the first one gave."""
    return max(1, _CACHED // max(1, grad[:1].numel())) if grad.device.type == "cpu" else max(1, len(grad))


def _laid_out(like: Geometry, dtype: torch.dtype) -> Tensor:
    """What torch's own backward function puts its gradient into: channels-last if the input was, or else not."""
    found = like.empty(dtype)
    last = CHANNELS_LAST.get(found.dim(), torch.contiguous_format)
    return found if found.is_contiguous(memory_format=last) else found.contiguous()


def inverse_deviation(var: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(var + eps)``, [C], to the bit as torch's backward function computes it: its gradient of ones."""
    return _own_gradient(torch.ones_like(var)[None], var, None, eps)[0]


def _own_gradient(grad: Tensor, var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """What torch's backward function gives. It takes features and a mean, which this gradient does not depend on."""
    function, wanted = torch.ops.aten.native_batch_norm_backward, [True, False, False]
    found: Tensor = function(grad, grad, weight, var, var, None, None, False, eps, wanted)[0]
    return found


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.dim() - 2))


@lean_form(F.batch_norm, modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm))
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`."""
    fixed = (running_mean, running_var, weight, bias)
    if training or running_mean is None or running_var is None or not pays(input, *fixed):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return run(Normalisation(eps), input, *fixed)
