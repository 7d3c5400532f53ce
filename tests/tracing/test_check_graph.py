"""A graph has to do what the forward does, operation by operation."""

import linecache
import random
import re

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
    ("kind", "inputs", "line"),
    [
        (_KindOfInput, (X,), "x = x * 2"),
        (_KeyOfInput, ({"x": X},), "return y * 2"),
        (_ListInput, ([X, X],), "x = [part * 2"),
        (_OtherParameter, (X,), "return self.mix(x) * (self.std"),
        (_OtherResult, (X,), "return first - second"),
        (_StaleResult, (X,), "return self.mix(self.part(x))"),
    ],
)
def test_a_branch_that_a_stand_in_answers_wrongly(kind: type[Base], inputs: tuple[object, ...], line: str) -> None:
    base = kind()
    aim = aimgraph.transform(base, inputs, verify="full")
    assert torch.equal(aim(*inputs), base(*inputs))
    plan = aimgraph.plan(aim)
    (found,) = filter(None, (_DIFFERS.search(note) for note in plan.notes))
    assert linecache.getline(__file__, int(found[3])).strip().startswith(line)
    assert found[1] != found[4]
    assert "stand-in" not in found.string
    assert (plan.covered, plan.fallback) == (1, 1)


_DIFFERS = re.compile(
    r"does not do what its forward does at batch size 3: operation \d+ is (.*) in the forward, (at|after) "
    r"test_check_graph\.py:(\d+) in [<>\w]+, and (.*) in the graph\. What decides there"
)


class _MoreInGraph(Base):
    """The forward leaves out what a trace records."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        return y + 1 if isinstance(x, torch.fx.Proxy) else y


def test_what_a_graph_does_more_is_told_by_the_last_line_before_it() -> None:
    (note, *_) = (note for note in aimgraph.plan(_MoreInGraph(), X).notes if "in the forward" in note)
    found = _DIFFERS.search(note)
    assert found
    assert (found[1], found[2]) == ("missing", "after")
    assert linecache.getline(__file__, int(found[3])).strip() == "y = self.mix(x)"


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
