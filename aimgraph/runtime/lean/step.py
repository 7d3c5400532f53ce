"""One differentiable step whose backward pass needs less than torch keeps for it, and when it may stand for torch's.

    y = f(x; w),   dL/dx = b(dL/dy; kept)

With `w` fixed, `kept` holds no features, or one bit of each. The step is taken where a gradient of `x` is wanted and
none of `w`; anywhere else torch's own function runs.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from aimgraph.errors import PlanError
from aimgraph.torch_private import FakeTensor, is_batched, is_captured, is_dispatched, is_transformed, is_view

Kept: TypeAlias = tuple[Tensor, ...]


class Step(Protocol):
    """What one call computes, forward and backward.

    Attributes:
        curved: Whether its gradient changes with its input, so that there is a further gradient of that.
    """

    curved: bool

    def forward(self, *inputs: Any) -> tuple[Tensor, Kept]:
        """The output, and the tensors that `backward` needs besides the gradient."""

    def backward(self, grad: Tensor, *kept: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the first inputs, in any dtype; the others have none."""


@dataclass(frozen=True)
class Geometry:
    """How a tensor lies in memory, without its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "Geometry":
        """That of a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def empty(self, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor that lies like it, of no values: torch's backward functions ask for an input that they don't read.

        It is there while they run. An expanded number would take no memory at all, and have them choose another memory
        layout, and so other and slower kernels, for channels-last features.
        """
        return torch.empty_strided(self.shape, self.stride, dtype=dtype or self.dtype, device=self.device)


TWICE = (
    "this backward pass differentiates the gradients of a module whose base is frozen, and its forward kept too little "
    "for that: call aimgraph.freeze_base(aim, lean=False) before the forward"
)


class Lean(torch.autograd.Function):
    """Runs a `Step`. None keeps its output, so that others may write over it."""

    @staticmethod
    def forward(ctx: Any, step: Step, overwrites: bool, *inputs: Any) -> Tensor:
        """The output of the step."""
        output, kept = step.forward(*inputs)
        ctx.step, ctx.dtypes = step, [one.dtype if isinstance(one, Tensor) else None for one in inputs]
        ctx.save_for_backward(*kept)
        if overwrites:
            ctx.mark_dirty(inputs[0])
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of the step's inputs."""
        if torch.is_grad_enabled() and ctx.step.curved:  # create_graph=True
            raise PlanError(TWICE)
        with torch.no_grad():
            given = ctx.step.backward(grad, *ctx.saved_tensors)
            found = [None if one is None else one.to(dtype) for one, dtype in zip(given, ctx.dtypes, strict=False)]
        if torch.is_grad_enabled():
            found = [None if one is None else _once(one, grad) for one in found]
        return None, None, *found, *[None] * (len(ctx.dtypes) - len(found))


_apply: Any = Lean.apply


class _Once(torch.autograd.Function):
    """A gradient that is linear in the one it was made from, by way of which alone there would be a further one."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, grad: Tensor) -> Tensor:
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise PlanError(TWICE)


_once: Any = _Once.apply


def run(step: Step, *inputs: Any, overwrites: bool = False) -> Tensor:
    """What a step gives.

    Args:
        step: Of this call.
        *inputs: Of its forward; gradients are those of the first ones.
        overwrites: Whether it writes its output over its first input.
    """
    return cast(Tensor, _apply(step, overwrites, *inputs))


def pays(wanted: Tensor, *fixed: Any, overwrites: bool = False) -> bool:
    """Whether a step is worth while, and right: a gradient is wanted of the first tensor and of no other one.

    Args:
        wanted: The features.
        *fixed: Weights, statistics and the like; what is no tensor has no gradient.
        overwrites: Whether the step would write over the features: a view of another tensor is left to torch.
    """
    if stands_aside() or not torch.is_grad_enabled() or not isinstance(wanted, Tensor):
        return False
    if not _plain(wanted) or not wanted.requires_grad or wanted.is_complex():
        return False
    if overwrites and (is_view(wanted) or wanted.is_leaf):
        return False
    return not any(isinstance(one, Tensor) and (one.requires_grad or not _plain(one)) for one in fixed)


def _plain(tensor: Any) -> bool:
    return type(tensor) in (Tensor, nn.Parameter, nn.Buffer, FakeTensor) and tensor.layout is torch.strided


def by_name(names: tuple[str, ...], args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name.

    Args:
        names: Of its positional arguments, in order; there may be fewer of these.
        args: The positional ones.
        kwargs: The others.
    """
    count = min(len(names), len(args))  # torch 2.9 compiles no zip of different lengths into a dict
    return dict(zip(names[:count], args[:count], strict=True)) | dict(kwargs)


_SEVERAL = tuple, list  # a union here is what torch 2.9 can't compile


def sizes(value: Any, rank: int) -> tuple[int, ...]:
    """An option of torch's functions, one number for each of `rank` axes."""
    given = tuple(value) if isinstance(value, _SEVERAL) else (value,)
    return given * rank if len(given) == 1 else given


def stands_aside() -> bool:
    """Whether torch's own functions have to run: a program is made of what runs, or a transform differentiates it."""
    return is_captured() or is_transformed()


def is_written(grad: Tensor) -> bool:
    """Whether torch's functions may write what they make of a gradient into a tensor of ours.

    They can't where the backward pass itself is batched, differentiated or recorded.
    """
    return type(grad) is Tensor and not (stands_aside() or is_dispatched() or is_batched(grad))
