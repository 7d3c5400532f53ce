"""Every lean form gives what torch's function gives, forward and backward, and keeps less."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.bench.footprint import saved_bytes
from aimgraph.runtime import lean  # noqa: F401  (its files register the forms)
from aimgraph.runtime.lean.forms import FORMS

MAP, ROW, VOLUME = (2, 6, 13, 11), (2, 6, 17), (1, 6, 6, 7, 8)


@dataclass(frozen=True)
class Case:
    """A call of a function on features.

    Attributes:
        function: Of torch.
        shape: Of the features.
        args: Further arguments; a `Shape` stands for a fixed tensor.
        kwargs: By name.
        keeps: Bytes that it may keep for each value of the features.
    """

    function: Callable[..., Any]
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    keeps: float = 0.0

    def __str__(self) -> str:
        return f"{self.function.__name__}-{self.args}-{self.kwargs}".replace(" ", "")


class Shape(tuple[int, ...]):
    """Of a fixed tensor."""


def weights(*sizes: int) -> Shape:
    return Shape(sizes)


BIT = 1 / 8
CASES = [
    *(Case(F.relu, MAP, args, keeps=BIT) for args in ((), (True,))),
    Case(torch.relu, MAP, keeps=BIT),
    Case(torch.relu_, MAP, keeps=BIT),
    *(Case(F.relu6, MAP, args, keeps=BIT) for args in ((), (True,))),
    Case(F.hardtanh, MAP, (-0.3, 0.4), keeps=BIT),
    *(Case(F.hardtanh, MAP, (-0.3, 0.7, inplace), keeps=BIT) for inplace in (False, True)),  # rounded in bfloat16
    *(Case(F.leaky_relu, MAP, args, keeps=BIT) for args in ((0.1,), (0.1, True), (0.0,))),
    Case(torch.clamp, MAP, (-0.5, 0.5), keeps=BIT),
    Case(torch.clamp, MAP, kwargs={"min": 0}, keeps=BIT),
    *(Case(F.prelu, MAP, (weights(count),), keeps=BIT) for count in (1, 6)),
    Case(F.conv1d, ROW, (weights(4, 6, 3), weights(4), 2, 1)),
    Case(F.conv2d, MAP, (weights(8, 6, 3, 3), weights(8)), {"stride": 2, "padding": 1}),
    Case(F.conv2d, MAP, (weights(8, 3, 3, 3), None, 1, (1, 0), 2, 2)),
    Case(F.conv2d, MAP, (weights(12, 1, 5, 5), None, [1], 2, 1, 6)),
    *(Case(F.conv2d, MAP, (weights(8, 6, *kernel), None, 1, "same", 2)) for kernel in ((3, 3), (3, 5))),
    Case(F.conv2d, MAP, (weights(8, 6, 3, 1), None, 1, "same")),
    Case(F.conv2d, MAP, (weights(8, 6, 2, 2), None, 2, "valid")),
    Case(F.conv3d, VOLUME, (weights(4, 6, 3, 3, 3), weights(4), (1, 2, 1))),
    Case(F.conv_transpose1d, ROW, (weights(6, 4, 3), weights(4), 2)),
    Case(F.conv_transpose2d, MAP, (weights(6, 8, 3, 3), weights(8), 2, 1, 1)),
    Case(F.conv_transpose2d, MAP, (weights(6, 2, 3, 3), None, 2, 1, 1, 2, 2)),
    Case(F.conv_transpose3d, VOLUME, (weights(6, 4, 2, 2, 2),)),
    Case(F.batch_norm, MAP, (weights(6), weights(6), weights(6), weights(6))),
    Case(F.batch_norm, MAP, (weights(6), weights(6)), {"eps": 1e-3}),
    Case(F.batch_norm, (5, 6), (weights(6), weights(6), weights(6))),
    Case(F.batch_norm, ROW, (weights(6), weights(6), weights(6))),
    Case(F.batch_norm, VOLUME, (weights(6), weights(6), None, weights(6))),
    *(Case(F.max_pool1d, ROW, args, keeps=1) for args in ((3,), (3, 2, 1), (2, None, 0, 3), ((5,), (2,), (2,)))),
    *(Case(F.max_pool2d, MAP, args, keeps=1) for args in ((2,), (3, 2, 1), ((3, 2), (2, 3), (1, 0), (1, 2), True))),
    Case(F.max_pool2d, (2, 3, 9, 128), (3, 2, 1), keeps=1),
    *(Case(F.max_pool3d, VOLUME, args, keeps=1) for args in ((2,), ((2, 3, 1), (1, 2, 3), (1, 1, 0), (1, 2, 1)))),
    *(Case(F.avg_pool1d, ROW, args) for args in ((3,), (3, 2, 1), (2, 2, 0, True, False))),
    *(Case(F.avg_pool2d, MAP, args) for args in ((2,), (3, 2, 1), (3, 2, 1, True, False, 5))),
    Case(F.avg_pool3d, VOLUME, (2,)),
    Case(F.adaptive_avg_pool1d, ROW, (4,)),
    *(Case(F.adaptive_avg_pool2d, MAP, args) for args in ((1,), ((3, 2),), ((None, 2),))),
    Case(F.adaptive_avg_pool3d, VOLUME, (3,)),
    *(Case(F.pad, MAP, ((1, 2, 3, 1), mode)) for mode in ("reflect", "replicate", "constant")),
    *(Case(F.pad, ROW, ((1, 2), mode)) for mode in ("reflect", "replicate")),
    *(Case(function, MAP, args, keeps=4) for function in (F.silu, F.hardswish, F.mish) for args in ((), (True,))),
    *(Case(F.gelu, MAP, kwargs={"approximate": kind}, keeps=4) for kind in ("none", "tanh")),
]


def given(case: Case, dtype: torch.dtype) -> list[Any]:
    """The arguments, fixed tensors in the place of their shapes."""
    draw = torch.Generator().manual_seed(3)
    dtype = torch.float32 if dtype is torch.bfloat16 and case.function is F.batch_norm else dtype
    return [(torch.rand(*one, generator=draw) + 0.1).to(dtype) if isinstance(one, Shape) else one for one in case.args]


def ran(case: Case, function: Any, x: Tensor, autocast: bool = False) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the features."""
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", enabled=autocast):
        y = function(leaf * 1, *given(case, x.dtype), **case.kwargs)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return y.detach(), torch.autograd.grad(y, leaf, grad)[0]


def same(these: tuple[Tensor, Tensor], those: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(these, those, strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one.nan_to_num(nan=7), other.nan_to_num(nan=7))


KINDS = [(torch.float32, False), (torch.float64, False), (torch.bfloat16, False), (torch.float32, True)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_equal_to_the_bit_in_every_dtype_and_layout_and_under_autocast(case: Case) -> None:
    for dtype, autocast in KINDS:
        x = torch.randn(case.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        x.flatten()[:3] = torch.tensor([0.0, -0.0, 6.0])
        layouts = [x, *([x.to(memory_format=torch.channels_last)] if x.dim() == 4 else [])]
        for one in (*layouts, x.transpose(-1, -2).contiguous().transpose(-1, -2)):
            try:
                expected = ran(case, case.function, one, autocast)
            except NotImplementedError:  # torch has no such kernel for bfloat16
                assert dtype is torch.bfloat16
                continue
            same(ran(case, FORMS[case.function], one, autocast), expected)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_nothing_is_kept_but_what_the_gradient_needs(case: Case) -> None:
    x, fixed = torch.randn(case.shape).requires_grad_(), given(case, torch.float32)
    holder = nn.ParameterList([one for one in fixed if isinstance(one, Tensor)])
    tensors = iter(holder)
    fixed = [next(tensors) if isinstance(one, Tensor) else one for one in fixed]
    holder.requires_grad_(False)
    kept = saved_bytes(holder, lambda: FORMS[case.function](x * 1, *fixed, **case.kwargs))
    assert kept <= case.keeps * x.numel() + 8


def test_a_value_that_is_no_number_lets_its_gradient_through_as_in_torch() -> None:
    x = torch.tensor([[float("nan"), 1.0, -1.0, float("inf"), -float("inf"), 0.0, -0.0, 6.0]])
    for function in (F.relu, F.relu6, F.leaky_relu, torch.relu_):
        case = Case(function, tuple(x.shape))
        same(ran(case, FORMS[function], x), ran(case, function, x))


@pytest.mark.parametrize("activation", [F.silu, F.hardswish, F.mish, F.gelu])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_product_with_a_gate_keeps_what_its_factor_was_made_from(activation: Any, inplace: bool) -> None:
    if inplace and activation is F.gelu:
        pytest.skip("GELU has no form in place")
    options: dict[str, Any] = {"inplace": True} if inplace else {}
    x, mix = torch.randn(4, 16, 8, 8).requires_grad_(), torch.randn(16, 16)

    def block(form: Callable[[Any], Any]) -> Tensor:
        y = form(activation)(x * 1, **options)
        gate = torch.sigmoid(y.mean((2, 3)) @ mix)[..., None, None]
        return form(operator.mul)(y, gate)

    plain, lean_forms = (lambda one: one), FORMS.__getitem__
    outputs = [block(form) for form in (plain, lean_forms)]
    grads = [torch.autograd.grad(output.square().sum(), x)[0] for output in outputs]
    assert torch.equal(*outputs)
    assert torch.equal(*grads)
    before, after = (saved_bytes(nn.Module(), lambda form=form: block(form)) for form in (plain, lean_forms))
    assert after < before - 0.9 * 4 * x.numel()


def test_a_factor_that_was_written_over_is_kept_itself() -> None:
    x, gate = torch.randn(3, 4).requires_grad_(), torch.randn(3, 4).requires_grad_()
    found = []
    for form in (lambda one: one, FORMS.__getitem__):
        y = form(F.silu)(x * 1)
        y = y.add_(1)
        found.append(torch.autograd.grad(form(operator.mul)(y, gate).sum(), (x, gate)))
    same(*found)


def test_a_factor_whose_source_was_written_over_is_kept_itself() -> None:
    x, mix = torch.randn(3, 4), torch.randn(3, 4)
    found = []
    for form in (lambda one: one, FORMS.__getitem__):
        leaf, gate = x.clone().requires_grad_(), mix.clone().requires_grad_()
        z = leaf * 1
        y = form(F.silu)(z)
        z.add_(1)
        found.append(torch.autograd.grad(form(operator.mul)(y, gate).sum(), gate))
    assert torch.equal(found[0][0], found[1][0])
