"""A frozen batch normalisation and the activation behind it as one step.

    z = f(n(x)),   dL/dx = dL/dz * f'(n(x)) / sqrt(var + eps) * w

It keeps what both keep. The gradient is scaled while it is in the processor's cache, by the factors that torch's own
backward function takes in turn, so that the bits are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from aimgraph.runtime.lean import activations
from aimgraph.runtime.lean.activations import TwoSlopes, hardtanh_step, relu_step
from aimgraph.runtime.lean.bits import in_one_piece, through_bits
from aimgraph.runtime.lean.call import lean_call
from aimgraph.runtime.lean.normalisation import CHANNELS_LAST, Normalisation, inverse_deviation
from aimgraph.runtime.lean.step import Geometry, Kept, is_written, pays, run
from aimgraph.torch_private import has_hooks

NORMS: dict[type[nn.Module], Callable[[Any], Normalisation]] = dict.fromkeys(
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), lambda module: Normalisation(module.eps)
)
"""Class of a norm, and of that alone -> its step, which a pair begins with."""

ACTIVATIONS: dict[type[nn.Module], Callable[[Any], TwoSlopes]] = {
    nn.ReLU: lambda module: relu_step(inplace=True),
    nn.ReLU6: lambda module: hardtanh_step(module.min_val, module.max_val, inplace=True),
    nn.Hardtanh: lambda module: hardtanh_step(module.min_val, module.max_val, inplace=True),
}
"""Class of an activation -> its step, which may write over what the norm gives: nobody else sees that."""

_FORMS: dict[str, tuple[Callable[..., Any], Callable[..., TwoSlopes]]] = {
    "relu": (activations.relu, lambda inplace=False: relu_step(inplace=True)),
    "relu_": (activations.relu_, lambda: relu_step(inplace=True)),
    "relu6": (activations.relu6, lambda inplace=False: hardtanh_step(0.0, 6.0, inplace=True)),
}

NAMES = {form: name for name, (form, _) in _FORMS.items()}
"""Lean form of an activation -> its name, by which a graph gives it to `lean_pair`."""


@dataclass
class _Pair:
    """One call."""

    norm: Normalisation
    activation: TwoSlopes
    like: Geometry = field(init=False)
    curved = False

    def forward(self, x: Tensor, *fixed: Any) -> tuple[Tensor, Kept]:
        middle, kept = self.norm.forward(x, *fixed)
        self.like = Geometry.of(middle)
        output, bits = self.activation.forward(middle)
        return output, (*bits, *kept)

    def backward(self, grad: Tensor, *kept: Tensor) -> tuple[Tensor]:
        bits, *fixed = kept
        if self._is_scaled_at_once(grad, fixed):
            return (self._scaled(grad, bits, fixed),)
        return self.norm.backward(*self.activation.backward(grad, bits), *fixed)

    def _is_scaled_at_once(self, grad: Tensor, fixed: list[Tensor]) -> bool:
        """Whether the stretches of the bits are whole samples, which lie as the features did."""
        if (
            not grad.numel()
            or not is_written(grad)
            or Geometry.of(grad) != self.like
            or self.activation.like != self.like
        ):
            return False
        if self.norm.like != self.like or any(one.dtype != grad.dtype or one.dtype.itemsize < 4 for one in fixed):
            return False
        one, short = in_one_piece(grad.numel(), grad.device)
        return one and (short or len(grad) % 8 == 0) and _inner(grad) > 0

    def _scaled(self, grad: Tensor, bits: Tensor, fixed: list[Tensor]) -> Tensor:
        var, *weights = fixed
        channels, inner = len(var), _inner(grad)
        factors = [one.view(channels, 1) for one in (inverse_deviation(var, self.norm.eps), *weights)]

        def gradient(given: Tensor, numbers: Tensor, above: float, out: Tensor | None) -> Tensor:
            assert out is not None
            self.activation.gradient(given, numbers, above, out)
            samples = out.view(-1, channels, inner)
            for factor in factors:
                samples.mul_(factor)
            return out

        return through_bits(grad, bits, self.like, gradient)


def _inner(grad: Tensor) -> int:
    """Numbers that lie between one channel and the next; 0 where channels lie in neither of torch's two ways."""
    if grad.is_contiguous():
        return grad.shape[2:].numel()
    last = CHANNELS_LAST.get(grad.dim())
    return int(last is not None and grad.is_contiguous(memory_format=last))


def lean_pair(norm: nn.Module, activation: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What an activation gives of what a batch normalisation gives.

    Args:
        norm: The norm.
        activation: A module, or the name of a lean form.
        x: Features.
        *args: Of the lean form.
        **kwargs: The same.
    """
    given: Any = norm
    begins, ends = NORMS.get(type(norm)), _end(activation)
    if begins is None or ends is None or not _takes(given, activation, x):
        middle = lean_call(norm, x)
        if isinstance(activation, nn.Module):
            return lean_call(activation, middle)
        return _FORMS[activation][0](middle, *args, **kwargs)
    given._check_input_dim(x)
    pair = _Pair(begins(norm), ends(*args, **kwargs))
    return run(pair, x, given.running_mean, given.running_var, given.weight, given.bias)


def _end(activation: Any) -> Callable[..., TwoSlopes] | None:
    """What makes the step of an activation of the arguments of a call."""
    if not isinstance(activation, nn.Module):
        return _FORMS[activation][1]
    step = ACTIVATIONS.get(type(activation))
    return None if step is None else lambda: step(activation)


def _takes(norm: Any, activation: Any, x: Any) -> bool:
    """Whether the two may be one step: nobody looks at what is between them, and it would keep less."""
    modules = [norm, activation] if isinstance(activation, nn.Module) else [norm]
    if any(has_hooks(module) or "forward" in vars(module) for module in modules):
        return False
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    return pays(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
