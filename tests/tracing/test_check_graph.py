"""A graph has to do what the forward does, operation by operation."""

import random

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.tracing.bases import Base, X


class _KindOfInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, torch.fx.Proxy):  # a shortcut for tracing, as some models have
            x = x * 2
        return self.mix(x)


class _KeyOfInput(Base):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        y = self.mix(x["x"])
        return y * 2 if type(x.get("scale", 1.0)) is float else y


class _ListInput(Base):
    def forward(self, x: list[Tensor]) -> Tensor:
        if type(x) in (list, tuple):
            x = [part * 2 for part in x]
        return self.mix(x[0])


class _OtherParameter(Base):
    """The same operation on a tensor of the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * (self.std if type(x) is Tensor or "Fake" in type(x).__name__ else self.mix.bias)


class _OtherResult(Base):
    def forward(self, x: Tensor) -> Tensor:
        first, second = self.mix(x), x.sin()
        return first - second if type(x) is Tensor or "Fake" in type(x).__name__ else second - first


class _Keeps(nn.Module):
    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x.sin()
        return x


class _StaleResult(Base):
    """What a part below kept of the last call; a trace sees what was kept before it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = _Keeps()
        self.part.kept = X.cos()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.part(x)) * self.part.kept


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (_KindOfInput, (X,)),
        (_KeyOfInput, ({"x": X},)),
        (_ListInput, ([X, X],)),
        (_OtherParameter, (X,)),
        (_OtherResult, (X,)),
        (_StaleResult, (X,)),
    ],
)
def test_a_branch_that_a_stand_in_answers_wrongly(kind: type[Base], inputs: tuple[object, ...]) -> None:
    base = kind()
    aim = aimgraph.transform(base, inputs, verify="full")
    assert torch.equal(aim(*inputs), base(*inputs))
    plan = aimgraph.plan(aim)
    assert any("does not do what its forward does at batch size" in note for note in plan.notes)
    assert (plan.covered, plan.fallback) == (1, 1)


class _Centred(nn.Module):
    """Assigns a buffer at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = x.mean(0)
        return x - self.mean


class _Chooses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.one if random.random() < 0.5 else self.other)


@pytest.mark.parametrize("part", [_Centred, _Chooses])
def test_parts_that_are_calls_of_the_graph(part: type[nn.Module]) -> None:
    base = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(4, 4), part())), nn.Linear(4, 4))
    aim = aimgraph.transform(base, X)
    assert (aimgraph.plan(aim).covered, aimgraph.plan(aim).fallback) == (5, 0)
    outputs = []
    for module in (base, aim):
        random.seed(3)
        outputs.append(module(X))
    assert torch.equal(*outputs)
