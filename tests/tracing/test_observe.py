"""A copy that reaches the layers of the model that was given: it would run and train these."""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class _Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm, self.act = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.mix(x))) * self.scale


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.head = nn.Linear(4, 4), _Part(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.stem(x)))


class _Calls(nn.Module):
    """Calls a function that it keeps as an attribute."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _by_closure(net: _Net) -> None:
    former = net.part.forward
    net.part.forward = lambda x: former(x) * 2  # type: ignore[method-assign]


def _by_decorator(net: _Net) -> None:
    net.part.forward = torch.no_grad()(net.part.forward)  # type: ignore[method-assign]


def _compiled(net: _Net) -> None:
    net.part.forward = torch.compile(net.part.forward, backend="eager")  # type: ignore[method-assign]


def _layer_by_closure(net: _Net) -> None:
    former = net.stem.forward
    net.stem.forward = lambda x: former(x)  # type: ignore[method-assign]


def _norm_alone(net: _Net) -> None:
    norm = net.part.norm
    net.part.forward = lambda x: norm(x)  # type: ignore[method-assign]


def _parameter(net: _Net) -> None:
    weight = net.part.mix.weight
    net.part.forward = lambda x: nn.functional.linear(x, weight)  # type: ignore[method-assign]


def _buffer(net: _Net) -> None:
    mean = net.part.norm.running_mean
    net.part.forward = lambda x: x - mean  # type: ignore[method-assign]


def _in_train_mode(net: _Net) -> None:
    norm = net.part.norm
    net.part.forward = MethodType(lambda self, x: norm(x) if self.training else x, net.part)  # type: ignore[method-assign]


def _hook(net: _Net) -> None:
    stem = net.stem
    net.part.register_forward_hook(lambda _m, _i, y: stem(y))


def _attribute(net: _Net) -> None:
    part = net.part
    net.part.act = _Calls(lambda x: x * part.scale)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("change", "place", "tensor"),
    [
        (_by_closure, "part (_Part)", "part.mix.weight"),
        (_by_decorator, "part (_Part)", "part.mix.weight"),
        (_compiled, "part (_Part)", "part.mix.weight"),
        (_layer_by_closure, "stem (Linear)", "stem.weight"),
        (_norm_alone, "part (_Part)", "part.norm.weight"),
        (_parameter, "part (_Part)", "part.mix.weight"),
        (_buffer, "part (_Part)", "part.norm.running_mean"),
        (_in_train_mode, "part (_Part)", "part.norm."),
        (_hook, "part (_Part)", "stem.weight"),
        (_attribute, "part.act (_Calls)", "part.scale"),
    ],
)
def test_a_copy_that_reaches_the_models_own_tensors_is_refused(
    change: Callable[[_Net], None], place: str, tensor: str
) -> None:
    net = _Net().eval()
    change(net)
    for call, within in ((aimgraph.transform, None), (aimgraph.plan, None), (aimgraph.transform, "0")):
        with pytest.raises(aimgraph.PlanError) as caught:
            call(net if within is None else nn.Sequential(net), X, within=within)
        assert str(caught.value).startswith(place)
        assert f"uses {tensor if within is None else f'{within}.{tensor}'}" in str(caught.value)
    aim = aimgraph.transform(net, X, inplace=True)
    assert torch.equal(aim(X), net(X))


class _Object:
    def __init__(self, part: _Part) -> None:
        self.part = part

    def __call__(self, x: Tensor) -> Tensor:
        return _Part.forward(self.part, x)


class _CopiedAsItself(nn.Linear):
    """Stays the same layer in every copy."""

    def __deepcopy__(self, memo: Any) -> "_CopiedAsItself":
        return self


_ELSEWHERE = nn.Linear(4, 4)
"""A layer that is no part of any model."""


def _partial(net: _Net) -> None:
    net.part.forward = functools.partial(_Part.forward, net.part)  # type: ignore[method-assign]


def _method(net: _Net) -> None:
    net.part.forward = MethodType(_Part.forward, net.part)  # type: ignore[method-assign]


def _callable_object(net: _Net) -> None:
    net.part.forward = _Object(net.part)  # type: ignore[method-assign, assignment]


def _layer_elsewhere(net: _Net) -> None:
    net.part.forward = lambda x: _ELSEWHERE(x)  # type: ignore[method-assign]


def _hook_without_layers(net: _Net) -> None:
    net.part.register_forward_hook(lambda _m, _i, y: y * 2 if net.part is not None else y)


def _itself(net: _Net) -> None:
    net.part = nn.Sequential(_CopiedAsItself(4, 4))  # type: ignore[assignment]


@pytest.mark.parametrize(
    "change", [_partial, _method, _callable_object, _layer_elsewhere, _hook_without_layers, _itself]
)
def test_functions_that_reach_what_they_may(change: Callable[[_Net], None]) -> None:
    net = _Net().eval()
    change(net)
    assert aimgraph.plan(net, X).covered == 3
    aim = aimgraph.transform(net, X, verify="full")
    assert torch.equal(aim(X), net(X))
