"""What a forward asks of sizes, numbers and structures is answered by the example and asked again at every call."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from tests.nets import run
from tests.tracing.bases import Base, X


class ShapeFlow(Base):
    """Control flow over shapes, in every way that Python asks for a value."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        if x.dim() == 3 and c % 2 == 0 and len(x.shape) == 3 and t in (5, 6):
            x = x.reshape(b, -1, int(c))
        assert x.shape[-1] == 4, "four channels"
        parts = [self.mix(part) for part in x.unbind(1)]
        for i in range(t - 1):
            parts[i] = parts[i] + float(c) * i
        x = torch.stack(parts, 1)
        x[:, 0] = 0
        x[:, :, : c // 2] *= 2
        pair = x.chunk(2, dim=-1)
        table = torch.ones(t, c) + torch.zeros((t, 1)) + torch.full((1, c), 2.0)
        return torch.cat([*pair], -1) + torch.arange(t)[None, :, None] / max(t, 1) + table


def test_control_flow_over_shapes() -> None:
    base, x = ShapeFlow(), torch.randn(2, 5, 4)
    aim = aimgraph.transform(base, x, verify="full")
    for batch in (1, 2, 7):
        sample = torch.randn(batch, 5, 4)
        assert torch.equal(aim(sample), base(sample))
    plan = aimgraph.plan(aim)
    assert [(read.site, len(read.calls)) for read in plan.memories[0].reads] == [("mix", 5)]
    one, other = run(base.train(), x), run(aim.train(), x)
    one.sum().backward(), other.sum().backward()  # type: ignore[attr-defined]
    assert torch.equal(base.mix.weight.grad, aim.get_parameter("mix.weight").grad)


class _Attention(Base):
    """Takes tensors apart as most attention layers do, and goes through rows of inputs and parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.shifts = nn.Linear(4, 12), nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, 2).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) @ v).transpose(1, 2).reshape(batch, tokens, 4)
        for shift in self.shifts:
            y = y + shift
        first, *others = y.transpose(0, 1)
        return self.mix(y) + (first + sum(others)).unsqueeze(1)


def test_unpacked_tensors() -> None:
    base, x = _Attention(), torch.randn(2, 3, 4)
    aim = aimgraph.transform(base, x, verify="full")
    assert (aimgraph.plan(aim).covered, aimgraph.plan(aim).fallback) == (2, 0)
    assert aimgraph.verify(base, aim).ok
    with pytest.warns(UserWarning, match=r"len\(\)"):
        assert torch.equal(aim(torch.ones(2, 5, 4)), base(torch.ones(2, 5, 4)))


class _Asks(Base):
    """Asks its inputs what they are, and gets the answers that it gets without a trace."""

    def forward(self, x: dict[str, Any]) -> Tensor:
        features = x["x"]
        asked = (
            isinstance(x, dict),
            isinstance(features, Tensor),
            torch.is_tensor(features),
            isinstance(features.shape, torch.Size),
            isinstance(features.shape[0], int),
            features.dim() in (2, 3),
            features.device.type in {"cpu", "cuda"},
            {torch.float32: True}[features.dtype],
            x.get("scale") is None,
            not hasattr(features, "logits"),
            hasattr(features, "view"),
            isinstance(self.mix.weight, nn.Parameter),
            not isinstance(features, nn.Parameter),
        )
        torch._check(features.shape[-1] > 1)
        return self.mix(features) * sum(asked)


def test_inputs_are_asked_what_they_are() -> None:
    base = _Asks()
    aim = aimgraph.transform(base, ({"x": X},), verify="full")
    assert torch.equal(aim({"x": X}), base({"x": X}))
    assert aimgraph.plan(aim).fallback == 0


class _PlainTensor(Base):
    """Adds a tensor that is neither parameter nor buffer, and takes the result apart by its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.arange(4.0)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.mix(x) + self.shift.to(x.dtype)).chunk(2, dim=-1)
        return first * second


def test_sizes_are_known_behind_a_plain_tensor() -> None:
    base = _PlainTensor()
    aim = aimgraph.transform(base, X, verify="full")
    assert torch.equal(aim(X), base(X))
    assert aimgraph.plan(aim).fallback == 0


class _DecidesBySize(nn.Module):
    """Halves large images, and takes as many positions as the side of a square has."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        if y.shape[-1] > 16:
            y = F.avg_pool2d(y, 2)
        side = math.ceil(math.sqrt(y.shape[-1] * y.shape[-2]))
        return self.head(y.flatten(2)[:, :, :side].mean(2) + torch.zeros([y.shape[0], 1]))


def test_a_decision_by_size_is_asked_again() -> None:
    base = _DecidesBySize()
    aim = aimgraph.transform(base, torch.randn(2, 3, 8, 8), verify="full")
    for shape in [(1, 3, 8, 8), (7, 3, 9, 5), (2, 3, 16, 16)]:
        x = torch.randn(shape)
        assert torch.equal(aim(x), base(x))
    x = torch.randn(2, 3, 20, 20)
    with pytest.warns(UserWarning, match=r"gt\(.*, 16\) at test_values.*False; these make it True") as warned:
        assert all(torch.equal(aim(x), base(x)) for _ in range(2))
    assert len(warned) == 1
    assert aimgraph.plan(aim).fallback == 0


class _Structure(Base):
    """Loops over a list, asks a dict for a key and a number."""

    def forward(self, parts: list[Tensor], options: dict[str, int]) -> Tensor:
        x = sum(parts)
        if options.get("plain") is None:
            x = x * 2
        if options["shift"] > 1:
            x = x + 1
        return self.mix(x) * options["shift"]


def test_the_structure_of_inputs_is_asked_for_again() -> None:
    base = _Structure()
    aim = aimgraph.transform(base, ([X, X], {"shift": 3}), verify="full")
    for options in ({"shift": 3}, {"shift": 2}, {"shift": 3, "other": 1}):
        assert torch.equal(aim([X, X + 1], options), base([X, X + 1], options))
    for inputs in (([X], {"shift": 3}), ([X, X], {"shift": 1}), ([X, X], {"shift": 3, "plain": 1})):
        with pytest.warns(UserWarning, match="transform the model with example inputs of these"):
            assert torch.equal(aim(*inputs), base(*inputs))
    assert aimgraph.plan(aim).fallback == 0


class _DecidesByBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * 2 if x.shape[0] == 1 else self.mix(x)


class _DecidesByGradient(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        return y * 2 if y.requires_grad else y


class _DecidesByGradMode(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * 2 if torch.is_grad_enabled() else self.mix(x)


@pytest.mark.parametrize("kind", [_DecidesByBatch, _DecidesByGradient, _DecidesByGradMode])
@pytest.mark.parametrize("size", [1, 3])
def test_what_no_graph_can_decide_is_kept_as_one_call(kind: type[Base], size: int) -> None:
    base = kind()
    aim = aimgraph.transform(base, X[:size], verify="full")
    for x in (X[:1], X):
        assert torch.equal(aim(x), base(x))
        with torch.no_grad():
            assert torch.equal(aim(x), base(x))
    assert aimgraph.plan(aim).fallback == 1


class _Flattens(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x).view(int(x.shape[0]), -1)


class _RowByRow(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(X.shape[-1], 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.mix(x[i : i + 1]) * (i + 1) for i in range(len(x))]))


class _Scales(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * (2.0 if isinstance(x, Tensor) else 1.0)


@pytest.mark.parametrize("kind", [_Flattens, _RowByRow, _Scales])
def test_numbers_that_the_example_decides(kind: type[Base]) -> None:
    base = kind()
    aim = aimgraph.transform(base, X, verify="full")
    for rows in (1, 2, 7):
        x = torch.randn(rows, *X.shape[1:])
        assert torch.equal(aim(x), base(x))
    why = {item.path: item.reason for item in aimgraph.plan(aim).skipped}
    rows = {"mix": f"called {len(X)} times at one batch size and {len(X) + 1} times at another"}
    assert why == (rows if kind is _RowByRow else {})
